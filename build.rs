//! Links the programs to the libtorch in `lib/` beside them (a bundle), else to the one they were built with, by its place,
//! so that no LD_LIBRARY_PATH is needed; keeps libtorch out of the launcher; compiles the C++ of `src/world` and `src/libtorch`; tells the commit.

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
    compile_shims(&lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=MQAT_TORCH_LIB={}", lib.display());
}

/// The C++ of `src/world`, which reaches libtorch's c10d, and of `src/libtorch`, with the headers beside libtorch's libraries.
fn compile_shims(lib: &Path) {
    const GLOO: &str = "src/world/gloo_stub";
    for path in SOURCES.into_iter().chain([GLOO]) {
        println!("cargo:rerun-if-changed={path}");
    }
    for name in COMPILER {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let include = lib.with_file_name("include");
    let gloo = include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp");
    if !gloo.exists() {
        eprintln!("{} is missing: mqat needs a libtorch with c10d and gloo", gloo.display());
        std::process::exit(1);
    }
    let mut compiler = cc::Build::new();
    compiler.cpp(true).std("c++17").warnings(false).opt_level(1);
    compiler.define("_GLIBCXX_USE_CXX11_ABI", "1").define("USE_DISTRIBUTED", None);
    compiler.define("USE_C10D_GLOO", None).define("AT_PER_OPERATOR_HEADERS", None).include(GLOO);
    compiler.include(&include).include(include.join("torch/csrc/api/include"));
    // This script runs after every commit, and the compiler takes 10 to 20 s.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let (stamp, text) = (out.join("shims.stamp"), stamp_of(lib));
    if std::fs::read_to_string(&stamp).is_ok_and(|before| before == text) {
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static=mqat_shims");
        println!("cargo:rustc-link-lib=stdc++");
    } else {
        compiler.files(SOURCES).compile("mqat_shims");
        std::fs::write(&stamp, text).expect("writing into OUT_DIR");
    }
    // Before torch-sys's libraries: libtorch_cuda has gloo as well, and would be loaded for it, with or without a GPU.
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

/// What is compiled.
const SOURCES: [&str; 2] = ["src/world/c10d.cpp", "src/libtorch/lists.cpp"];

/// Variables that choose and instruct the C++ compiler.
const COMPILER: [&str; 2] = ["CXX", "CXXFLAGS"];

/// All that the compiled C++ depends on.
fn stamp_of(lib: &Path) -> String {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let stubs = ["algorithm", "common/error", "context", "rendezvous/store", "transport/device"];
    let stubs = stubs.map(|name| format!("src/world/gloo_stub/gloo/{name}.h"));
    let own = SOURCES.map(str::to_owned).into_iter().chain(stubs);
    let own: Vec<String> = own.map(|name| read(PathBuf::from(name))).collect();
    let versions = ["version.py", "build-version"].map(|name| read(lib.with_file_name(name)));
    let compiler = COMPILER.map(|name| std::env::var(name).unwrap_or_default());
    let [own, versions, compiler] = [own.concat(), versions.concat(), compiler.join("\n")];
    [&lib.display().to_string(), &versions, &compiler, &own, include_str!("build.rs")].join("\n")
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
