//! How much memory this process may still take.
use std::path::Path;

/// Bytes that can be taken without swapping: what Linux calls available, or less where a control group sets a limit. `None` where the
/// system does not say (other systems than Linux).
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| cgroup_headroom(&text));
    match (machine, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The smallest headroom among this process's control groups, from the text of /proc/self/cgroup.
fn cgroup_headroom(cgroup: &str) -> Option<u64> {
    cgroup.lines().filter_map(group_folders).flatten().filter_map(|folder| headroom_of(&folder)).min()
}

/// The folders, innermost first, whose limits apply to a line of /proc/self/cgroup (`id:controllers:path`).
fn group_folders(line: &str) -> Option<Vec<std::path::PathBuf>> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let root = match controllers {
        "" => Path::new("/sys/fs/cgroup"),
        c if c.split(',').any(|c| c == "memory") => Path::new("/sys/fs/cgroup/memory"),
        _ => return None,
    };
    let innermost = root.join(path.trim_start_matches('/'));
    Some(innermost.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_path_buf).collect())
}

fn headroom_of(folder: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let limit = read("memory.max").or_else(|| read("memory.limit_in_bytes"))?;
    let used = read("memory.current").or_else(|| read("memory.usage_in_bytes"))?;
    headroom(&limit, &used, &read("memory.stat").unwrap_or_default())
}

/// Limit minus use; cached file pages count as free because the kernel drops them under pressure. `None` without a limit.
fn headroom(limit: &str, used: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?; // "max" is no number
    let used: u64 = used.trim().parse().ok()?;
    let field = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let reclaimable = field("inactive_file").saturating_add(field("active_file"));
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(mem_available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2048 * 1024));
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
        assert_eq!(mem_available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn a_group_without_a_limit_has_no_headroom_to_report() {
        assert_eq!(headroom("max\n", "100\n", ""), None);
        assert_eq!(headroom("1000\n", "400\n", ""), Some(600));
        assert_eq!(headroom("1000\n", "400\n", "anon 100\ninactive_file 50\nactive_file 250\n"), Some(900));
        assert_eq!(headroom("1000", "2000", ""), Some(0));
    }

    #[test]
    fn limits_of_outer_groups_apply_too() {
        let folders = group_folders("0::/a/b").unwrap();
        let folders: Vec<_> = folders.iter().map(|f| f.to_str().unwrap()).collect();
        assert_eq!(folders, ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
        assert!(group_folders("4:cpu,cpuacct:/x").is_none());
        assert_eq!(group_folders("4:memory:/x").unwrap().len(), 2);
    }
}
