//! Links the programs to the libtorch in `lib/` beside them (a bundle), else to the one they were built with, by its place,
//! so that no LD_LIBRARY_PATH is needed; keeps libtorch out of the launcher; tells the commit.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // `mqat` names nothing of libtorch. Inline functions of its C++ headers would still be kept, for libraries to find
    // them, and need it: hidden, they are dropped with everything else that nobody calls, and libtorch with them.
    println!("cargo:rustc-link-arg-bin=mqat=-Wl,--exclude-libs,ALL");
    println!("cargo:rustc-env=MQAT_COMMIT={}", commit().unwrap_or_default());
    // torch-sys (links = "tch") tells where the libraries are.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") else { return };
    let lib = PathBuf::from(lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=MQAT_TORCH_LIB={}", lib.display());
}

/// The commit that the sources are of; none without git, or where the sources are no repository of their own.
fn commit() -> Option<String> {
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let own = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR")?).canonicalize().ok()?;
    if Path::new(&root).canonicalize().ok()? != own {
        return None;
    }
    // Both change when HEAD moves, by a commit or to another branch, and not otherwise.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// What git says, if it succeeds.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
