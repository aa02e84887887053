//! ONNX Runtime: the shared library, and a file that runs in it.

use std::cell::RefCell;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::TensorRef;
use prost::Message;
use tch::{Device, Kind, Tensor};

use super::emit::INT4_OPSET;
use super::file::{FileHead, read_head};
use super::kernels::{sums_saturate, use_unsigned_weights, widen_weights};
use super::proto::{Model, ValueInfo};
use crate::nn::Outputs;

/// The environment variable that names the library.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// The library's name beside the program, where `setup.sh --with-ort` puts it.
pub const LIBRARY: &str = "libonnxruntime.so";

/// How a file is to be run.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Threads of an operation; 0 leaves the choice to ONNX Runtime.
    pub threads: usize,
    /// Where a profile goes: a file's path without its ending.
    pub profile: Option<PathBuf>,
    /// Weights as [`use_unsigned_weights`] makes them; none: where this CPU needs it.
    pub exact_sums: Option<bool>,
    /// Values inside the graph that [`OnnxSession::values`] is to give.
    pub values: Vec<String>,
}

/// An ONNX file of a pose network, ready to run on the CPU.
pub struct OnnxSession {
    session: RefCell<Session>,
    head: FileHead,
    exact_sums: bool,
    at: String,
}

impl OnnxSession {
    /// Opens a file and prepares it for this CPU.
    ///
    /// Activations that are integers make its convolutions run as integers; weights that are integers alone are turned
    /// into floats once, here. Where [`sums_saturate`], large weights run unsigned, exact and slower, unless the options
    /// say otherwise.
    ///
    /// # Errors
    /// If the file is not an ONNX file of a pose network, or the library is missing or refuses the file.
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Self> {
        let head = read_head(path)?;
        let environment = environment()?;
        let at = path.display().to_string();
        let exact_sums =
            options.exact_sums.unwrap_or(sums_saturate() && head.quantized_activations);
        let build = || -> Result<Session> {
            let mut builder = SessionBuilder::new(environment).map_err(plain)?;
            builder =
                builder.with_optimization_level(GraphOptimizationLevel::All).map_err(plain)?;
            builder = builder.with_log_level(LogLevel::Fatal).map_err(plain)?;
            // Threads that wait actively after a run take the cores from what comes next.
            builder = builder.with_intra_op_spinning(false).map_err(plain)?;
            if options.threads > 0 {
                builder = builder.with_intra_threads(options.threads).map_err(plain)?;
            }
            if !head.quantized_activations {
                builder = builder.with_quant_qdq(false).map_err(plain)?;
            }
            if let Some(profile) = &options.profile {
                builder = builder.with_profiling(profile).map_err(plain)?;
            }
            let changed = head.quantized_activations && (exact_sums || head.opset >= INT4_OPSET);
            if changed || !options.values.is_empty() {
                let bytes = changed_model(path, exact_sums, &options.values)?;
                return builder.commit_from_memory(&bytes).map_err(plain);
            }
            builder.commit_from_file(path).map_err(plain)
        };
        let session = build().with_context(|| format!("ONNX Runtime cannot load {at}"))?;
        Ok(Self { session: RefCell::new(session), head, exact_sums, at })
    }

    /// What the file says of itself.
    pub fn head(&self) -> &FileHead {
        &self.head
    }

    /// Whether sums are exact at the price of speed: see [`sums_saturate`].
    pub fn exact_sums(&self) -> bool {
        self.exact_sums
    }

    /// As [`OnnxSession::values`], under their names.
    ///
    /// # Errors
    /// As [`OnnxSession::values`].
    pub fn named(&self, images: &Tensor, names: &[&str]) -> Result<Outputs> {
        let values = self.values(images, names)?;
        Ok(Outputs::new(names.iter().map(|name| (*name).to_owned()).zip(values).collect()))
    }

    /// Outputs and [`SessionOptions::values`] by name, for images `[n, 3, h, w]`, normalised, any `n`: a file of a fixed batch
    /// size runs as often as it takes, the last time filled up. Integers as such.
    ///
    /// # Errors
    /// If the images have not the file's size, there is no such value, or ONNX Runtime fails.
    pub fn values(&self, images: &Tensor, names: &[&str]) -> Result<Vec<Tensor>> {
        let (height, width) = self.head.size;
        let shape = images.size();
        ensure!(
            shape.len() == 4 && shape[1..] == [3, height as i64, width as i64],
            "{}: images of shape {shape:?}, expected [n, 3, {height}, {width}]",
            self.at
        );
        let images = images.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let Some(batch) = self.head.batch.map(|n| n as i64) else {
            return self.run_batch(&images, names);
        };
        let mut parts = vec![];
        let mut first = 0;
        while first < shape[0] {
            let n = batch.min(shape[0] - first);
            let mut part = images.narrow(0, first, n);
            if n < batch {
                let options = (Kind::Float, Device::Cpu);
                let rest = images.new_zeros([batch - n, 3, shape[2], shape[3]], options);
                part = Tensor::cat(&[part, rest], 0);
            }
            let values = self.run_batch(&part.contiguous(), names)?;
            parts.push(values.into_iter().map(|t| t.narrow(0, 0, n)).collect::<Vec<_>>());
            first += n;
        }
        let join =
            |i: usize| Tensor::cat(&parts.iter().map(|part| &part[i]).collect::<Vec<_>>(), 0);
        Ok((0..names.len()).map(join).collect())
    }

    fn run_batch(&self, images: &Tensor, names: &[&str]) -> Result<Vec<Tensor>> {
        let pixels = Vec::<f32>::try_from(images.view([-1]))?;
        let input =
            TensorRef::from_array_view((images.size(), pixels.as_slice())).map_err(plain)?;
        let mut session = self.session.borrow_mut();
        let outputs = session
            .run(ort::inputs![self.head.input.as_str() => input])
            .map_err(|e| anyhow!("{}: ONNX Runtime: {}", self.at, first_line(&e.to_string())))?;
        let value = |name: &&str| -> Result<Tensor> {
            let value = outputs.get(name);
            let value = value.with_context(|| format!("{}: no output {name}", self.at))?;
            if let Ok((shape, values)) = value.try_extract_tensor::<u8>() {
                return Ok(Tensor::from_slice(values).reshape(shape.to_vec()));
            }
            if let Ok((shape, values)) = value.try_extract_tensor::<i8>() {
                return Ok(Tensor::from_slice(values).reshape(shape.to_vec()));
            }
            let (shape, values) = value.try_extract_tensor::<f32>().map_err(plain)?;
            Ok(Tensor::from_slice(values).reshape(shape.to_vec()))
        };
        names.iter().map(value).collect()
    }

    /// Ends the profile and returns its file; only for sessions opened with one.
    ///
    /// # Errors
    /// If ONNX Runtime cannot write it.
    pub fn end_profile(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(self.session.borrow_mut().end_profiling().map_err(plain)?))
    }
}

/// The file with weights for the kernels of this CPU, and with further outputs.
fn changed_model(path: &Path, exact_sums: bool, values: &[String]) -> Result<Vec<u8>> {
    let bytes = crate::io::read_file(path)?;
    let mut model = Model::decode(bytes.as_slice())?;
    if let Some(graph) = &mut model.graph {
        let widened = widen_weights(graph);
        let unsigned = if exact_sums { use_unsigned_weights(graph) } else { 0 };
        tracing::debug!(widened, unsigned, "weights changed for the kernels of this CPU");
        // A name alone: ONNX Runtime infers the type.
        let output = |name: &String| ValueInfo { name: name.clone(), ..ValueInfo::default() };
        graph.output.extend(values.iter().map(output));
    }
    Ok(model.encode_to_vec())
}

/// The process's ONNX Runtime, loaded at the first use.
///
/// # Errors
/// If the library is not found; says where it was looked for and how to get it.
pub fn environment() -> Result<&'static Environment> {
    static LOADED: OnceLock<Environment> = OnceLock::new();
    if let Some(environment) = LOADED.get() {
        return Ok(environment);
    }
    let library = library()?;
    let load = || {
        let builder = ort::init_from(&library).map_err(|e| anyhow!("{e}"))?;
        builder.with_name("mqat").with_telemetry(false).build().map_err(plain)
    };
    let environment = load().with_context(|| {
        format!(
            "loading ONNX Runtime from {}; `./setup.sh --with-ort` fetches one that fits",
            library.display()
        )
    })?;
    environment.set_log_level(LogLevel::Fatal);
    tracing::debug!(library = %library.display(), "ONNX Runtime");
    Ok(LOADED.get_or_init(|| environment))
}

/// Which ONNX Runtime the process has: its version, or what it says of itself.
///
/// # Errors
/// As [`environment`].
pub fn version() -> Result<String> {
    environment()?;
    Ok(version_in(ort::info()))
}

/// `ORT Build Info: git-branch=rel-1.23.0, git-commit-id=..., build type=Release, ...`: the branch is the version.
fn version_in(info: &str) -> String {
    let branch = info.split(['=', ',']).map(str::trim).find_map(|part| part.strip_prefix("rel-"));
    let whole = info.trim_start_matches("ORT Build Info:").split(", build type").next();
    branch.or(whole).unwrap_or(info).trim().to_owned()
}

/// The library: `ORT_DYLIB_PATH`, else the one beside the program, else the system's.
fn library() -> Result<PathBuf> {
    if let Some(named) = env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()) {
        let path = PathBuf::from(named);
        ensure!(path.is_file(), "{LIBRARY_VARIABLE} is {}, which is not a file", path.display());
        return Ok(path);
    }
    let program = env::current_exe().context("finding the program's own folder")?;
    let beside = program.parent().map(|folder| folder.join(LIBRARY));
    if let Some(beside) = beside.filter(|p| p.is_file()) {
        return Ok(beside);
    }
    for folder in
        ["/usr/lib", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
    {
        let path = Path::new(folder).join(LIBRARY);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "ONNX Runtime is not installed: run `./setup.sh --with-ort`, or set {LIBRARY_VARIABLE} to a {LIBRARY} of \
         version 1.17 or later"
    )
}

/// ONNX Runtime's message, on one line.
fn plain<R>(error: ort::Error<R>) -> anyhow::Error {
    anyhow!("{}", first_line(&error.to_string()))
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_taken_from_the_name_of_the_release() {
        let info = "ORT Build Info: git-branch=rel-1.23.0, git-commit-id=26250ae, build type=Release, cmake";
        assert_eq!(version_in(info), "1.23.0");
        let own = "ORT Build Info: git-branch=HEAD, git-commit-id=26250ae, build type=Release";
        assert_eq!(version_in(own), "git-branch=HEAD, git-commit-id=26250ae");
        assert_eq!(version_in("else"), "else");
    }
}
