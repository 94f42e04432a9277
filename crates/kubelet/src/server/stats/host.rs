//! The node itself, from `/proc` and its file systems.

use std::path::Path;

use cri::messages::image::FilesystemUsage;
use jiff::Timestamp;
use nix::sys::statvfs::statvfs;

use super::Memory;

/// What `/proc` counts CPU time in (`USER_HZ`): 100 a second on every Linux that there is.
const TICK_NANOS: u64 = 10_000_000;

#[derive(Default)]
pub struct Host {
    pub booted: Option<Timestamp>,
    /// CPU time spent on work, over all cores.
    pub cpu_nanos: u64,
    pub cores: u64,
    pub memory_total: u64,
    pub(super) memory: Memory,
    pub interfaces: Vec<Interface>,
    pub filesystem: Option<Filesystem>,
    pub processes: Option<u64>,
    pub processes_max: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filesystem {
    pub capacity: u64,
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub inodes_used: u64,
}

impl Host {
    /// Reads what there is; what cannot be read is left out. Blocks.
    pub fn read(root_dir: &Path) -> Host {
        let proc = |name: &str| std::fs::read_to_string(Path::new("/proc").join(name)).unwrap_or_default();
        let stat = proc("stat");
        let (memory_total, memory) = memory(&proc("meminfo"), &proc("vmstat"));
        Host {
            booted: field(&stat, "btime").and_then(|seconds| Timestamp::from_second(seconds as i64).ok()),
            cpu_nanos: busy_ticks(&stat).saturating_mul(TICK_NANOS),
            cores: std::thread::available_parallelism().map(|cores| cores.get() as u64).unwrap_or(1),
            memory_total,
            memory,
            interfaces: interfaces(&proc("net/dev")),
            filesystem: filesystem(root_dir),
            processes: processes(&proc("loadavg")),
            processes_max: proc("sys/kernel/pid_max").trim().parse().ok(),
        }
    }
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix([' ', ':', '\t'])))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// Ticks of all cores but those spent idle or waiting for disks. Guests' time is counted in `user` already.
fn busy_ticks(stat: &str) -> u64 {
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else { return 0 };
    let ticks = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
    ticks.take(8).enumerate().filter(|(column, _)| !matches!(column, 3 | 4)).map(|(_, ticks)| ticks).sum()
}

/// Total memory, and its use: the working set is what would not be given up without a fight, as cAdvisor counts it.
fn memory(meminfo: &str, vmstat: &str) -> (u64, Memory) {
    let bytes = |name: &str| field(meminfo, name).map(|kibibytes| kibibytes * 1024);
    let Some(total) = bytes("MemTotal") else { return (0, Memory::default()) };
    let usage = total.saturating_sub(bytes("MemFree").unwrap_or(0));
    let working_set = usage.saturating_sub(bytes("Inactive(file)").unwrap_or(0));
    let memory = Memory {
        usage: Some(usage),
        working_set: Some(working_set),
        available: Some(total.saturating_sub(working_set)),
        rss: bytes("AnonPages"),
        page_faults: field(vmstat, "pgfault"),
        major_page_faults: field(vmstat, "pgmajfault"),
    };
    (total, memory)
}

/// The interfaces of the network that a process is in; none if it has ended.
pub fn interfaces_of(pid: i32) -> Vec<Interface> {
    std::fs::read_to_string(format!("/proc/{pid}/net/dev")).map(|text| interfaces(&text)).unwrap_or_default()
}

fn interfaces(net_dev: &str) -> Vec<Interface> {
    let parse = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|counter| counter.parse().ok()).collect();
        let name = name.trim().to_owned();
        let (rx_bytes, rx_errors) = (*counters.first()?, *counters.get(2)?);
        let (tx_bytes, tx_errors) = (*counters.get(8)?, *counters.get(10)?);
        Some(Interface { name, rx_bytes, rx_errors, tx_bytes, tx_errors })
    };
    let virtual_prefixes = ["lo", "veth"];
    net_dev
        .lines()
        .filter_map(parse)
        .filter(|interface| !virtual_prefixes.iter().any(|prefix| interface.name.starts_with(prefix)))
        .collect()
}

/// The number of tasks, from the fourth field of `/proc/loadavg` (`running/all`).
fn processes(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

pub fn filesystem(path: &Path) -> Option<Filesystem> {
    let stat = statvfs(path).ok()?;
    let block = stat.fragment_size();
    let capacity = stat.blocks().saturating_mul(block);
    Some(Filesystem {
        capacity,
        available: stat.blocks_available().saturating_mul(block),
        used: capacity.saturating_sub(stat.blocks_free().saturating_mul(block)),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
        inodes_used: stat.files().saturating_sub(stat.files_free()),
    })
}

/// The file system of images: its size, and what images use of it.
pub fn image_filesystem(usage: &FilesystemUsage) -> Option<Filesystem> {
    let whole = filesystem(Path::new(&usage.fs_id.as_ref()?.mountpoint))?;
    let used = usage.used_bytes.as_ref().map_or(whole.used, |bytes| bytes.value);
    let inodes_used = usage.inodes_used.as_ref().map_or(whole.inodes_used, |inodes| inodes.value);
    Some(Filesystem { used, inodes_used, ..whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\nbtime 1700000000\n";
        assert_eq!(busy_ticks(stat), 100 + 20 + 30 + 6 + 7 + 8);
        assert_eq!(field(stat, "btime"), Some(1_700_000_000));

        let meminfo = "MemTotal:  1000 kB\nMemFree:  400 kB\nInactive(file):  100 kB\nAnonPages:  50 kB\n";
        let (total, memory) = memory(meminfo, "pgfault 5\npgmajfault 2\n");
        assert_eq!(total, 1000 * 1024);
        assert_eq!((memory.usage, memory.working_set), (Some(600 * 1024), Some(500 * 1024)));
        assert_eq!((memory.available, memory.rss), (Some(500 * 1024), Some(50 * 1024)));
        assert_eq!((memory.page_faults, memory.major_page_faults), (Some(5), Some(2)));

        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n  eth0:10 2 3 0 0 0 0 0 20 5 6 0 0 0 0 0\n";
        let eth0 = Interface { name: "eth0".to_owned(), rx_bytes: 10, rx_errors: 3, tx_bytes: 20, tx_errors: 6 };
        assert_eq!(interfaces(dev), [eth0]);
        assert_eq!(processes("0.1 0.2 0.3 2/345 6789"), Some(345));
        assert_eq!(busy_ticks("nonsense"), 0);
    }

    #[test]
    fn this_machine_has_memory_and_a_file_system() {
        let host = Host::read(Path::new("/"));
        assert!(host.memory_total > 0 && host.cpu_nanos > 0);
        assert!(host.filesystem.unwrap().capacity > 0);
    }
}
