//! Starts that fail do so with one plain line; `check` finds the same beforehand.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::support::{CONFIG_MAPS, Site, config_map};

#[test]
fn a_port_in_use() {
    let site = Site::new();
    let _taken = TcpListener::bind(("0.0.0.0", 6443)).unwrap();
    let said = site.refused(&["--disable-agent"]);
    assert_eq!(said, "coxswain: cannot listen on 0.0.0.0:6443: Address already in use (os error 98)");
    let data = site.data().display().to_string();
    let (code, lines, _) = site.run(&["check", "--disable-agent", "--data-dir", &data]);
    assert_eq!(code, 1);
    assert!(lines.contains("missing  TCP 0.0.0.0:6443 is free: stop what listens there"), "{lines}");
}

#[test]
fn the_kubelets_port_in_use() {
    let site = Site::new();
    let _taken = TcpListener::bind(("0.0.0.0", 10250)).unwrap();
    let said = site.refused(&["--node-ip", "127.0.0.1"]);
    assert_eq!(said, "coxswain: cannot listen on 0.0.0.0:10250: Address already in use (os error 98)");
    assert!(!site.data().join("containerd").exists(), "nothing was started");
}

#[test]
fn a_second_server_on_the_same_data() {
    let site = Site::new();
    let server = site.start_api();
    let data = server.data.display().to_string();
    let said = site.refused(&["--disable-agent", "--https-listen-port", "7443"]);
    assert_eq!(said, format!("coxswain: another coxswain is running on {data}"));
    let (code, lines, _) = site.run(&["check", "--disable-agent", "--data-dir", &data]);
    assert_eq!(code, 0, "{lines}");
    assert!(lines.contains(&format!("ok       a server is running on {data}")), "{lines}");
}

#[test]
fn a_damaged_store() {
    let site = Site::new();
    let server = site.start_api();
    let client = site.connect();
    let (status, _) = site.block_on(client.post(CONFIG_MAPS, &config_map("a", 100)));
    assert_eq!(status, 201);
    assert!(server.stop().0.success());
    let files = fs::read_dir(site.data().join("db")).unwrap().map(|file| file.unwrap().path());
    let file = files.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let said = site.refused(&["--disable-agent"]);
    let start = format!("coxswain: cannot open the state store: {} is damaged at byte ", file.display());
    assert!(said.starts_with(&start), "{said}");
}

#[test]
fn a_data_folder_that_cannot_be_written() {
    let site = Site::new();
    site.small_disk(1 << 20);
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &site.data(), None::<&str>, read_only, None::<&str>).unwrap();
    let data = site.data().display().to_string();
    let said = site.refused(&["--disable-agent"]);
    assert_eq!(said, format!("coxswain: cannot create {data}/lock: Read-only file system (os error 30)"));
    let (code, lines, _) = site.run(&["check", "--disable-agent", "--data-dir", &data]);
    assert_eq!(code, 1);
    let line = format!("missing  data folder {data} can be written: {data} refuses; choose another with --data-dir");
    assert!(lines.contains(&line), "{lines}");
}

#[test]
fn a_disk_that_is_full_from_the_start() {
    let site = Site::new();
    site.small_disk(32 << 10);
    let said = site.refused(&["--disable-agent"]);
    assert!(said.to_lowercase().contains("no space left on"), "{said}");
}

/// Makes a program of the machine vanish for this site.
fn hide(program: &Path) {
    mount(Some("/dev/null"), program, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn a_missing_runtime() {
    let site = Site::new();
    while let Some(program) = cri::containerd::find_binary() {
        hide(&program);
    }
    let said = site.refused(&["--node-ip", "127.0.0.1"]);
    assert_eq!(said, "coxswain: containerd is not installed: apt-get install containerd runc");
    let data = site.data().display().to_string();
    let (code, lines, _) = site.run(&["check", "--data-dir", &data]);
    assert_eq!(code, 1);
    assert!(lines.contains("missing  containerd: apt-get install containerd\n"), "{lines}");
}

#[test]
fn wrong_settings() {
    let site = Site::new();
    let said = |more: &[&str]| site.refused(more);
    assert!(said(&["--log-level", "loud"]).starts_with("coxswain: --log-level loud: not one of"));
    assert!(said(&["--service-cidr", "10.43.0.1/16"]).contains("not a network such as"));
    assert!(said(&["--disable", "etcd"]).starts_with("coxswain: --disable etcd: unknown part, there are"));
    let file = site.path("config.yaml");
    fs::write(&file, "disable-agent: true\nhttps-port: 7443\n").unwrap();
    let path = file.display().to_string();
    assert_eq!(said(&["--config", &path]), format!("coxswain: {path}: unknown key https-port"));
    assert!(said(&["--config", "/no/such.yaml"]).starts_with("coxswain: cannot read /no/such.yaml: "));
}

#[test]
fn settings_from_a_file_with_structured_logs_and_private_files() {
    let site = Site::new();
    let file = site.path("config.yaml");
    fs::write(&file, "disable-agent: true\nlog-format: json\ntls-san: [api.example]\n").unwrap();
    let server = site.start(&["--config", &file.display().to_string(), "--log-level", "debug"]);
    let client = site.connect();
    site.block_on(client.get("/readyz"));
    let log = server.log();
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
    }
    let mode = |name: &str| fs::metadata(server.data.join(name)).unwrap().permissions().mode() & 0o777;
    for name in ["", "tls", "db"] {
        assert_eq!(mode(name), 0o700, "{name}");
    }
    for name in ["kubeconfig.yaml", "token", "tls/server-ca.key", "tls/service-account.key", "tls/admin.key"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
}
