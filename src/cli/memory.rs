//! How glibc keeps the memory of large tensors.

/// Has freed memory kept for the next tensors instead of given back to the system.
///
/// libtorch takes every activation from malloc. By default glibc maps memory of this size anew and unmaps it when freed, so that each step
/// faults all its pages again. Has to be called before threads start. A user who tunes malloc (`GLIBC_TUNABLES` with
/// `glibc.malloc`, `MALLOC_...`) is left alone.
pub fn keep() {
    if !is_tuned(std::env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    })) {
        set();
    }
}

/// Whether the environment says how malloc is to behave.
fn is_tuned(environment: impl IntoIterator<Item = (String, String)>) -> bool {
    environment.into_iter().any(|(name, value)| {
        name.starts_with("MALLOC_") || (name == "GLIBC_TUNABLES" && value.contains("glibc.malloc."))
    })
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set() {
    /// Bytes at the top of the heap above which they are given back.
    const TRIM_THRESHOLD: libc::c_int = 1 << 30;
    // SAFETY: mallopt changes settings of malloc under its own lock; it takes no pointers.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn set() {}

#[cfg(test)]
mod tests {
    use super::is_tuned;

    #[test]
    fn who_tunes_malloc_is_left_alone() {
        let tuned = |name: &str, value: &str| is_tuned([(name.to_owned(), value.to_owned())]);
        assert!(tuned("MALLOC_ARENA_MAX", "2"));
        assert!(tuned("GLIBC_TUNABLES", "glibc.malloc.mmap_max=4"));
        assert!(!tuned("GLIBC_TUNABLES", "glibc.pthread.rseq=0"));
        assert!(!tuned("PATH", "glibc.malloc."));
    }
}
