//! A server's process as `/proc` shows it: processor time and memory.

use std::fs;
use std::time::Duration;

/// Kernel ticks a second in `/proc`; the same on every Linux that there is.
const TICKS: u64 = 100;
const KIB_PER_PAGE: u64 = 4;

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pid: u32,
}

impl Process {
    pub fn of(pid: u32) -> Self {
        Process { pid }
    }

    /// Whoever of this machine listens on TCP `port`, in this network namespace.
    pub fn listening_on(port: u16) -> Option<Self> {
        let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok())
            .find_map(|text| listener_inode(&text, port).map(str::to_owned))?;
        let socket = format!("socket:[{inode}]");
        fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find(|pid: &u32| has_open(*pid, &socket))
            .map(Process::of)
    }

    /// Processor time that all its threads have used, also in the kernel.
    pub fn cpu(self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        Duration::from_millis(cpu_ticks(&stat) * (1000 / TICKS))
    }

    /// Bytes that it has made the kernel write to disks, whole pages as they are.
    pub fn written(self) -> u64 {
        written_bytes(&fs::read_to_string(format!("/proc/{}/io", self.pid)).unwrap_or_default())
    }

    /// Resident memory in KiB.
    pub fn rss_kib(self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid)).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * KIB_PER_PAGE
    }
}

/// User and system ticks; the name before them may itself contain spaces and brackets.
fn cpu_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn written_bytes(io: &str) -> u64 {
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    written.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

fn listener_inode(table: &str, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let local_port = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1)?.ends_with(&local_port) && *fields.get(3)? == LISTEN).then(|| fields.get(9).copied())?
    })
}

fn has_open(pid: u32, socket: &str) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|link| link.to_str() == Some(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 9 9 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), 300);
        assert_eq!(cpu_ticks(""), 0);
    }

    #[test]
    fn the_process_behind_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = Process::listening_on(listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(found.pid, std::process::id());
        assert!(found.rss_kib() > 0);
    }

    #[test]
    fn bytes_written_are_those_that_reach_the_disk() {
        let io = "rchar: 1\nwchar: 2\nsyscr: 3\nread_bytes: 4\nwrite_bytes: 4096\ncancelled_write_bytes: 8192\n";
        assert_eq!(written_bytes(io), 4096);
        assert_eq!(written_bytes(""), 0);
    }
}
