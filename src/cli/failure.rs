//! How a failure is told: one line on stderr, without libtorch's stack frames, and with what to do where that is known.

use std::any::Any;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use super::terminal::visible;

/// What libtorch's panics have in them: those of operators that return no error, and of `unwrap` on their results.
const LIBTORCH_MARK: &str = "Torch(\"";
/// Where the stack frames of a libtorch error begin.
const FRAMES: [&str; 2] = ["\nException raised from", "\nC++ CapturedTraceback"];

/// Whether a failure of libtorch was told by the panic hook already.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Runs `work`; a failure inside libtorch, in whatever thread, becomes an error, told once and without a backtrace.
/// Other panics are faults of this program and stay what they are.
///
/// # Errors
/// Those of `work`, and failures of libtorch.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let others = take_hook();
    set_hook(Box::new(move |info| match libtorch_message(text_of(info.payload())) {
        Some(_) => tell_thread(info),
        None if TOLD.load(Ordering::SeqCst) => {} // the end of a thread that waited for the failed one
        None => others(info),
    }));
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => match libtorch_message(text_of(&*payload)) {
            Some(message) => bail!("{message}"),
            None if TOLD.load(Ordering::SeqCst) => bail!("a thread of libtorch failed"),
            None => std::panic::resume_unwind(payload),
        },
    }
}

/// Tells of a failure in another thread than the one that will tell the error.
fn tell_thread(info: &PanicHookInfo<'_>) {
    if std::thread::current().name() == Some("main") {
        return; // guarded() makes an error of it
    }
    if let Some(message) = libtorch_message(text_of(info.payload()))
        && !TOLD.swap(true, Ordering::SeqCst)
    {
        eprintln!("mqat: {}", visible(&message));
    }
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// What libtorch said, from the text of a panic; `None` for other panics.
fn libtorch_message(panic: &str) -> Option<String> {
    let (_, quoted) = panic.split_once(LIBTORCH_MARK)?;
    // The message is quoted: its line ends are written as \n.
    let first = quoted.split("\\n").next().unwrap_or(quoted);
    let first = first.trim_end_matches("\")").replace("\\\"", "\"").replace("\\'", "'");
    Some(with_advice(&format!("libtorch: {first}")))
}

/// An error for people: without libtorch's stack frames, with what to do.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let end = FRAMES.iter().filter_map(|frames| text.find(frames)).min();
    let of_libtorch = end.is_some() || error.chain().any(|cause| cause.is::<tch::TchError>());
    let text = visible(text[..end.unwrap_or(text.len())].trim_end());
    if of_libtorch { with_advice(&text) } else { text }
}

/// What to do about a failure of libtorch.
fn with_advice(message: &str) -> String {
    let lower = message.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let advice = if has(&["out of memory", "can't allocate memory", "not enough memory"]) {
        "lower the batch size (--set data.bs_train, a stage's batch_size, data.bs_valid, --batch of predict) or the size of \
         the input, or free memory"
    } else if has(&["cuda", "cudnn", "cublas", "nvidia"]) {
        "see whether nvidia-smi shows the device, or compute with --device cpu"
    } else {
        return message.to_owned();
    };
    format!("{message}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    const OUT_OF_MEMORY: &str = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: \
        you tried to allocate 9 bytes.";

    #[test]
    fn errors_lose_their_frames_and_get_advice() {
        let torch = tch::TchError::Torch(format!(
            "{OUT_OF_MEMORY}\nException raised from alloc at a.cpp:1 (most recent call first):\nframe #0: x"
        ));
        let error = Err::<(), _>(torch).context("validating").unwrap_err();
        let line = one_line(&error);
        assert!(line.starts_with("validating: ") && line.contains("data.bs_train"), "{line}");
        assert!(!line.contains("frame #0") && !line.contains('\n'), "{line}");
        // What only sounds like it is left alone.
        assert_eq!(one_line(&anyhow::anyhow!("no CUDA device")), "no CUDA device");
    }

    #[test]
    fn a_panic_of_an_operator_is_an_error_of_one_line() {
        let torch = tch::TchError::Torch(format!("{OUT_OF_MEMORY}\nException raised from a \"b\""));
        let panic = format!("called `Result::unwrap()` on an `Err` value: {torch:?}");
        let message = libtorch_message(&panic).unwrap();
        assert!(message.contains("you tried to allocate 9 bytes.; lower the batch"), "{message}");
        assert!(!message.contains("Exception"), "{message}");
        let cuda = libtorch_message("value: Torch(\"CUDA error: an illegal memory access\")");
        assert!(cuda.unwrap().ends_with("illegal memory access; see whether nvidia-smi shows the device, or compute with --device cpu"));
        assert!(libtorch_message("index out of bounds").is_none());
    }

    #[test]
    fn work_that_panics_inside_libtorch_fails_and_does_not_panic() {
        let result = guarded(|| {
            let (a, b) = (tch::Tensor::from(1.0f32), tch::Tensor::from_slice(&[1.0f32, 2.0]));
            Ok(a.view([1]).matmul(&b))
        });
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("libtorch: ") && !error.contains('\n'), "{error}");
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7);
    }
}
