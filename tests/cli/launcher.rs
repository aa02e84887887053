//! The program without the libtorch that it was built with, and with one in `lib/` beside it, as bundles have.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the libtorch of this build is.
const TORCH_LIB: &str = env!("MQAT_TORCH_LIB");

/// The programs in a folder of their own, which do not know the libtorch of the build.
fn programs_elsewhere(folder: &Path) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_mqat"));
    let elsewhere = "/".repeat(TORCH_LIB.len() - 8) + "/missing";
    for name in ["mqat", "mqat-core"] {
        let mut bytes = std::fs::read(built.with_file_name(name)).unwrap();
        let places: Vec<usize> = bytes
            .windows(TORCH_LIB.len())
            .enumerate()
            .filter_map(|(at, window)| (window == TORCH_LIB.as_bytes()).then_some(at))
            .collect();
        assert!(!places.is_empty(), "{name} does not name {TORCH_LIB}");
        for at in places {
            bytes[at..at + TORCH_LIB.len()].copy_from_slice(elsewhere.as_bytes());
        }
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder.join("mqat")
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).env_remove("LD_LIBRARY_PATH").output().unwrap()
}

/// The libraries that the core of this build loads from outside the system's folders.
fn own_libraries() -> Vec<PathBuf> {
    let core = Path::new(env!("CARGO_BIN_EXE_mqat")).with_file_name("mqat-core");
    let list = Command::new(core)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let paths = list.lines().filter_map(|line| line.split(" => ").nth(1)?.split(" (").next());
    let is_own = |path: &&str| !["/lib", "/usr/lib"].iter().any(|system| path.starts_with(system));
    paths.filter(is_own).map(PathBuf::from).collect()
}

#[test]
fn without_libtorch_the_launcher_says_what_to_do_and_lib_beside_it_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let program = programs_elsewhere(folder.path());
    let inspect = ["inspect", "--topology", "WidedepthTiny"];
    assert!(run(&program, &["--version"]).status.success(), "it needs no libtorch");
    let failed = run(&program, &inspect);
    let err = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{err}");
    for part in ["libtorch_cpu.so", "./setup.sh", "--bundle DIR", "LD_LIBRARY_PATH"] {
        assert!(err.contains(part), "{part:?} is missing in {err}");
    }
    assert_eq!(err.lines().count(), 1, "{err}");

    let lib = folder.path().join("lib");
    std::fs::create_dir(&lib).unwrap();
    for library in own_libraries() {
        symlink(&library, lib.join(library.file_name().unwrap())).unwrap();
    }
    symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/problems"), folder.path().join("problems"))
        .unwrap();
    let ended = run(&program, &inspect);
    let err = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{err}");
    assert!(String::from_utf8_lossy(&ended.stdout).contains("backbone"));
}
