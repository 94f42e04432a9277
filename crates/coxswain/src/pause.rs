//! The image of pod sandboxes, which this program brings along: a node needs no registry to run a pod.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Built from `pause/pause.rs` by `build.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
/// Nobody can publish under this name: no registry is asked for it. A change of the program needs a new tag.
pub const IMAGE: &str = "localhost/coxswain/pause:1";
/// containerd's namespace of what CRI sees.
const NAMESPACE: &str = "k8s.io";

/// Gives the image to the containerd behind `socket`, if it has not got it. `containerd` is the program that runs there.
pub async fn provide(socket: &Path, containerd: &Path) -> Result<()> {
    let runtime = cri::Client::new(&format!("unix://{}", socket.display()))?;
    if runtime.image_status(IMAGE).await?.is_some() {
        return Ok(());
    }
    import(socket, containerd).await.context("cannot import the sandbox image")
}

/// CRI cannot import; containerd's own client, of the same package, can.
async fn import(socket: &Path, containerd: &Path) -> Result<()> {
    let ctr = ctr_beside(containerd);
    let mut command = Command::new(&ctr);
    command.arg("--address").arg(socket).args(["--namespace", NAMESPACE, "images", "import"]);
    // CRI unpacks it at the first use, with the snapshotter that it was configured for.
    command.args(["--no-unpack", "-"]).kill_on_drop(true);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", ctr.display()))?;
    let mut stdin = child.stdin.take().context("ctr has no input")?;
    let archive = archive()?;
    // It ends early if it does not like what it reads; why is on its error output.
    let written = stdin.write_all(&archive).await;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("{}: {}", ctr.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    written.context("ctr did not read the image")
}

fn ctr_beside(containerd: &Path) -> PathBuf {
    let beside = containerd.with_file_name("ctr");
    if beside.is_file() { beside } else { PathBuf::from("ctr") }
}

/// The image in `docker save` form.
fn archive() -> Result<Vec<u8>> {
    let layer = archive_of(&[("pause", PROGRAM, 0o755)])?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        // As upstream's: the sandbox needs no rights at all.
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).to_string();
    archive_of(&[
        (&config_name, config.as_bytes(), 0o644),
        ("layer.tar", &layer, 0o644),
        ("manifest.json", manifest.as_bytes(), 0o644),
    ])
}

fn archive_of(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        out.append_data(&mut header, path, *content)?;
    }
    Ok(out.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn small_and_ends_when_told_to() {
        assert!(PROGRAM.len() < 2048, "{} bytes", PROGRAM.len());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, PROGRAM).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
            let mut child = std::process::Command::new(&path).spawn().unwrap();
            // It sleeps nowhere else than where it waits for signals.
            let status = format!("/proc/{}/status", child.id());
            while !std::fs::read_to_string(&status).unwrap().contains("State:\tS") {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
            let ended = child.wait().unwrap();
            assert_eq!((ended.code(), ended.signal()), (Some(0), None));
        }
    }

    #[test]
    fn archive_is_the_same_each_time() {
        assert_eq!(archive().unwrap(), archive().unwrap());
    }
}
