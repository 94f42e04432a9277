//! Facts of the machine, read from the kernel.

use std::fs::read_to_string;
use std::path::Path;

use crate::thresholds::Level;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpu_count: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    /// Page size in bytes to the bytes of all such pages.
    pub huge_pages: Vec<(i64, i64)>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    pub architecture: String,
    pub hostname: String,
}

/// What changes while the machine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: Level,
    /// Of volumes, logs and writable layers.
    pub node_fs: Level,
    pub image_fs: Level,
    pub pids: Level,
}

/// `dir` is on the file system that pods use.
pub fn read(dir: &Path) -> Machine {
    let line = |path: &str| read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let machine_id = [line("/etc/machine-id"), line("/var/lib/dbus/machine-id")].into_iter().find(|id| !id.is_empty());
    let boot_id = line("/proc/sys/kernel/random/boot_id");
    let machine_id = machine_id.unwrap_or_default();
    let product_uuid = line("/sys/class/dmi/id/product_uuid").to_lowercase();
    Machine {
        cpu_count: std::thread::available_parallelism().map_or(1, |count| i64::try_from(count.get()).unwrap_or(1)),
        memory_bytes: meminfo(&line("/proc/meminfo"), "MemTotal"),
        storage_bytes: storage(dir).0,
        huge_pages: huge_pages(),
        system_uuid: if product_uuid.is_empty() { machine_id.clone() } else { product_uuid },
        machine_id,
        boot_id,
        kernel_version: line("/proc/sys/kernel/osrelease"),
        os_image: os_image(&line("/etc/os-release")),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        }
        .to_owned(),
        hostname: line("/proc/sys/kernel/hostname").to_lowercase(),
    }
}

/// `node_dir` is on the file system of volumes and logs, `image_dir` on that of images.
pub fn pressure(node_dir: &Path, image_dir: &Path) -> Pressure {
    let text = |path: &str| read_to_string(path).unwrap_or_default();
    let room = |dir: &Path| {
        let (capacity, available) = storage(dir);
        Level { available, capacity }
    };
    let memory = text("/proc/meminfo");
    let number = |path: &str| text(path).trim().parse::<i64>().unwrap_or(0);
    // `running/total` of all tasks is the fourth word.
    let tasks = text("/proc/loadavg");
    let tasks = tasks.split_whitespace().nth(3).and_then(|word| word.split_once('/'));
    let tasks: i64 = tasks.and_then(|(_, total)| total.parse().ok()).unwrap_or(0);
    let most = number("/proc/sys/kernel/pid_max").min(number("/proc/sys/kernel/threads-max")).max(1);
    Pressure {
        memory: Level { available: meminfo(&memory, "MemAvailable"), capacity: meminfo(&memory, "MemTotal") },
        node_fs: room(node_dir),
        image_fs: room(image_dir),
        pids: Level { available: (most - tasks).max(0), capacity: most },
    }
}

/// Bytes of the file system that holds `dir`: all, and what is left for unprivileged users.
pub fn storage(dir: &Path) -> (i64, i64) {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let Ok(stat) = nix::sys::statvfs::statvfs(existing) else { return (0, 0) };
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.fragment_size())).unwrap_or(i64::MAX);
    (bytes(stat.blocks()), bytes(stat.blocks_available()))
}

/// The value of a line `Name:   123 kB`, in bytes.
fn meminfo(text: &str, name: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value: Option<i64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0).saturating_mul(1024)
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn huge_pages() -> Vec<(i64, i64)> {
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB"));
        let Some(size) = size.and_then(|size| size.parse::<i64>().ok()) else { continue };
        let count =
            read_to_string(entry.path().join("nr_hugepages")).ok().and_then(|text| text.trim().parse::<i64>().ok());
        sizes.push((size * 1024, size * 1024 * count.unwrap_or(0)));
    }
    sizes.sort_unstable();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        let text = "MemTotal:       2048 kB\nMemAvailable:   1 kB\nMemTotalX: 9 kB\n";
        assert_eq!(
            (meminfo(text, "MemTotal"), meminfo(text, "MemAvailable"), meminfo(text, "Swap")),
            (2 << 20, 1024, 0)
        );
        assert_eq!(os_image("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }

    #[test]
    fn this_machine_has_something_to_offer() {
        let machine = read(Path::new("/nonexistent/below/root"));
        assert!(machine.cpu_count > 0 && machine.memory_bytes > 0 && machine.storage_bytes > 0);
        let now = pressure(Path::new("/"), Path::new("/tmp"));
        for level in [now.memory, now.node_fs, now.image_fs, now.pids] {
            assert!(level.available > 0 && level.available <= level.capacity, "{now:?}");
        }
    }
}
