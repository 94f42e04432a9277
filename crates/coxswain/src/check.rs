//! `coxswain check`: what this machine lacks to run a node, one line each with the mend.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::CheckArgs;

/// One thing a node needs. Pure over what was found, so that it can be tested.
struct Need {
    what: &'static str,
    met: bool,
    mend: String,
}

pub fn run(args: &CheckArgs) -> ExitCode {
    let needs = needs(&args.data_dir);
    for need in &needs {
        if need.met {
            println!("ok       {}", need.what);
        } else {
            println!("missing  {}: {}", need.what, need.mend);
        }
    }
    if needs.iter().all(|need| need.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn needs(data_dir: &Path) -> Vec<Need> {
    let need = |what, met, mend: &str| Need { what, met, mend: mend.to_owned() };
    vec![
        need("root privileges", nix::unistd::geteuid().is_root(), "run as root"),
        need("containerd", cri::containerd::find_binary().is_some(), "apt-get install containerd"),
        need("runc", on_path("runc").is_some(), "apt-get install runc"),
        need("overlayfs", kernel_lists("/proc/filesystems", "overlay"), "modprobe overlay"),
        need("memory cgroup", memory_cgroup(), "add cgroup_enable=memory to the kernel's command line and reboot"),
        need("nf_tables", kernel_lists("/proc/modules", "nf_tables"), "modprobe nf_tables"),
        need("IP forwarding can be switched on", writable("/proc/sys/net/ipv4/ip_forward"), "make /proc/sys writable"),
        need("data folder is writable", can_create(data_dir), "choose another with --data-dir"),
    ]
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn kernel_lists(file: &str, word: &str) -> bool {
    let listed = std::fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|w| w == word));
    listed || Path::new("/sys/module").join(word).exists()
}

fn memory_cgroup() -> bool {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    match v2 {
        Ok(controllers) => controllers.split_whitespace().any(|c| c == "memory"),
        Err(_) => Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists(),
    }
}

fn writable(file: &str) -> bool {
    nix::unistd::access(file, nix::unistd::AccessFlags::W_OK).is_ok()
}

/// Whether the folder, or the nearest one above it that exists, may be written.
fn can_create(dir: &Path) -> bool {
    let existing = dir.ancestors().find(|d| d.exists());
    existing.is_some_and(|d| nix::unistd::access(d, nix::unistd::AccessFlags::W_OK).is_ok())
}
