//! What the system gives of pages of 2 MiB.

/// Bytes of a large page.
pub(super) const LARGE_PAGE: usize = 2 << 20;

#[cfg(target_os = "linux")]
mod linux {
    use super::LARGE_PAGE;
    use memmap2::{Advice, MmapMut};
    use std::ops::Range;

    /// Has pages that are first touched from now on be large where these bytes of the map are whole ones. False: the system has none.
    pub fn advise(map: &MmapMut, bytes: Range<usize>) -> bool {
        map.advise_range(Advice::HugePage, bytes.start, bytes.len()).is_ok()
    }

    /// Moves what lies from `at` on, where a large page would begin, into one. False: the system cannot.
    pub fn collapse(at: *mut u8) -> bool {
        /// Of Linux 6.1 and later (`madvise(2)`). Not all of libc's targets name it.
        const MADV_COLLAPSE: i32 = 25;
        // SAFETY: whatever is there stays what it is, whoever reads or writes it meanwhile; where nothing is, the system says so.
        let done = unsafe { libc::madvise(at.cast(), LARGE_PAGE, MADV_COLLAPSE) } == 0;
        // Anything else is this page's own trouble: no large page is free, or somebody holds a small one.
        done || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL)
    }

    /// Whether the machine's owner lets programs have them, which collapsing does not ask.
    pub fn allowed() -> bool {
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|modes| !modes.contains("[never]"))
    }
}

/// Other systems have none for those who ask, or give them unasked.
#[cfg(not(target_os = "linux"))]
mod others {
    use memmap2::MmapMut;
    use std::ops::Range;

    pub fn advise(_: &MmapMut, _: Range<usize>) -> bool {
        false
    }

    pub fn collapse(_: *mut u8) -> bool {
        false
    }

    pub fn allowed() -> bool {
        false
    }
}

#[cfg(target_os = "linux")]
pub(super) use linux::{advise, allowed, collapse};
#[cfg(not(target_os = "linux"))]
pub(super) use others::{advise, allowed, collapse};
