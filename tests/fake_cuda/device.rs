//! The fake device: compiled once, and what a process counted on it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The folder with the fake `libtorch_cuda.so` and `libcuda.so.1`; none, told loudly, without a C++ compiler.
pub fn folder() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    MADE.get_or_init(|| match compile() {
        Ok(folder) => Some(folder),
        Err(why) => {
            let text = format!("SKIPPED: all tests on the fake CUDA device: {why}\n");
            // Past the capture of the test's output: nobody would see it there.
            std::io::stderr().write_all(text.as_bytes()).unwrap();
            None
        }
    })
    .as_deref()
}

/// Compiles both libraries, unless they are there from an earlier run of the same sources.
fn compile() -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let version = Command::new(&compiler).arg("--version").output();
    let version = version.map_err(|e| format!("no C++ compiler, {compiler}: {e}"))?.stdout;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_cuda");
    let sources = [include_str!("fake_cuda.cpp"), include_str!("fake_driver.c")].concat();
    let stamp = format!("{}{sources}{}", String::from_utf8_lossy(&version), env!("MQAT_TORCH_LIB"));
    let stamp_file = folder.join("stamp");
    if std::fs::read_to_string(&stamp_file).is_ok_and(|before| before == stamp) {
        return Ok(folder);
    }
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let lib = Path::new(env!("MQAT_TORCH_LIB"));
    let include = lib.with_file_name("include");
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda");
    let mut torch = Command::new(&compiler);
    torch.args(["-std=c++17", "-O0", "-fPIC", "-shared", "-w", "-D_GLIBCXX_USE_CXX11_ABI=1"]);
    torch.args(["-DAT_PER_OPERATOR_HEADERS", "-I"]).arg(&include);
    torch.arg("-I").arg(include.join("torch/csrc/api/include")).arg(here.join("fake_cuda.cpp"));
    torch.args(["-Wl,-soname,libtorch_cuda.so", "-L"]).arg(lib).args([
        "-ltorch_cpu",
        "-lc10",
        "-o",
    ]);
    let mut driver = Command::new(&compiler);
    driver.args(["-x", "c", "-fPIC", "-shared"]).arg(here.join("fake_driver.c")).arg("-o");
    for (command, name) in [(&mut torch, "libtorch_cuda.so"), (&mut driver, "libcuda.so.1")] {
        let output = command.arg(folder.join(name)).output();
        let output = output.map_err(|e| format!("{compiler}: {e}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}\n{error}");
    }
    std::fs::write(stamp_file, stamp).map_err(|e| e.to_string())?;
    Ok(folder)
}

/// What a process did on the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times the host waited, by cause.
    pub waits: BTreeMap<String, i64>,
    /// Copies to and from the device for which it did not wait.
    pub copies: i64,
    /// Operators by name.
    pub operators: BTreeMap<String, i64>,
    /// Waits by cause and places of the program.
    sites: BTreeMap<String, i64>,
}

impl Counts {
    /// Reads what a process wrote at its end.
    fn read(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut counts = Self::default();
        for line in text.lines() {
            let mut parts = line.splitn(3, ' ');
            let kind = parts.next().unwrap();
            let number: i64 = parts.next().unwrap().parse().unwrap();
            let name = parts.next().unwrap_or_default();
            match (kind, name.strip_prefix("WAIT ")) {
                ("event", Some(cause)) => drop(counts.waits.insert(cause.to_owned(), number)),
                ("event", None) => counts.copies += number,
                ("operator", _) => drop(counts.operators.insert(name.to_owned(), number)),
                ("site", Some(place)) => drop(counts.sites.insert(place.to_owned(), number)),
                _ => {}
            }
        }
        counts
    }

    /// What a longer run did more than a shorter one.
    pub fn beyond(&self, shorter: &Self) -> Self {
        let less = |a: &BTreeMap<String, i64>, b: &BTreeMap<String, i64>| {
            let number = |(name, n): (&String, &i64)| (name.clone(), n - b.get(name).unwrap_or(&0));
            a.iter().map(number).filter(|(_, n)| *n != 0).collect()
        };
        Self {
            waits: less(&self.waits, &shorter.waits),
            copies: self.copies - shorter.copies,
            operators: less(&self.operators, &shorter.operators),
            sites: less(&self.sites, &shorter.sites),
        }
    }

    /// Times the host waited.
    pub fn num_waits(&self) -> i64 {
        self.waits.values().sum()
    }

    /// Operators that the device got to do.
    pub fn num_operators(&self) -> i64 {
        self.operators.values().sum()
    }

    /// Where the host waited, for people: names of functions where `addr2line` is installed.
    pub fn places(&self) -> String {
        let addresses = |place: &str| -> Vec<String> {
            let (_, list) = place.split_once(" |").unwrap_or_default();
            list.split_whitespace().map(str::to_owned).collect()
        };
        let line = |(place, n): (&String, &i64)| {
            let cause = place.split(" |").next().unwrap_or_default();
            format!("{n} x {cause}: {}\n", names_of(&addresses(place)))
        };
        self.sites.iter().map(line).collect()
    }
}

/// The functions of this program at these addresses, the innermost first.
fn names_of(addresses: &[String]) -> String {
    let mut command = Command::new("addr2line");
    command.args(["-f", "-C", "-e", env!("CARGO_BIN_EXE_mqat-core")]).args(addresses);
    let Ok(output) = command.output() else { return addresses.join(" ") };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let functions = text.lines().step_by(2).filter(|name| name.contains("mqat::"));
    functions.take(4).collect::<Vec<_>>().join(" < ")
}

/// A process that has ended.
pub struct Ran {
    pub output: Output,
    pub counts: Counts,
    /// Whether CUDA's half of libtorch was loaded.
    pub was_loaded: bool,
}

impl Ran {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        let found = self.output.status.code();
        assert_eq!(found, Some(code), "{}\n-- stderr\n{}", self.stdout(), self.stderr());
        self
    }

    /// Checks that stderr has every one of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        let error = self.stderr();
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing:\n{error}");
        }
        self
    }
}

/// Runs the program where the fake device is, with variables of the environment.
pub fn run(folder: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats");
    let output = Command::new(env!("CARGO_BIN_EXE_mqat"))
        .args(args)
        .env("LD_LIBRARY_PATH", folder)
        .env("FAKE_CUDA_STATS", &stats)
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .env("MQAT_HOME", env!("CARGO_MANIFEST_DIR"))
        .env_remove("MQAT_LOG")
        .env_remove("RANK")
        .env_remove("WORLD_SIZE")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran { output, was_loaded: stats.exists(), counts: Counts::read(&stats) }
}
