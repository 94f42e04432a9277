//! Container images made on this machine: nothing is pulled.
//!
//! An image is a tar in `docker save` form with one layer: busybox with its applets, and a few files. containerd imports it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// What goes into an image.
pub struct Image {
    /// `docker.io/library/name:tag`
    pub reference: &'static str,
    /// Path in the image (no leading slash) → content and mode.
    pub files: BTreeMap<String, (Vec<u8>, u32)>,
    pub command: Vec<&'static str>,
}

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "[", "ash", "awk", "base64", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env", "false",
    "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ls", "mkdir", "mount", "mv", "nc", "nslookup", "ping",
    "printenv", "printf", "ps", "rm", "sed", "seq", "sh", "sleep", "stat", "sysctl", "tail", "tar", "test", "touch",
    "true", "wc", "wget",
];

/// Serves its own host name, and where asked the request's source, on port 80 (or $PORT).
const WEB: &str = "#!/bin/sh
mkdir -p /tmp/www/cgi-bin
hostname > /tmp/www/index.html
echo \"${VERSION:-1}\" > /tmp/www/version
printf '#!/bin/sh\\necho; echo \"$REMOTE_ADDR\"\\n' > /tmp/www/cgi-bin/source
chmod +x /tmp/www/cgi-bin/source
trap 'exit 0' TERM INT
httpd -f -p \"${PORT:-80}\" -h /tmp/www &
wait
";

/// Programs of this machine for the image of tools. The static busybox cannot resolve names as ordinary programs do.
const TOOLS: [&str; 2] = ["curl", "getent"];
/// A gRPC server of others that has the standard health service.
const GRPC_SERVER: [&str; 1] = ["etcd"];

/// Programs under /usr/bin with the libraries that they are linked with, at the paths where they look for them.
fn programs(names: &[&str]) -> Result<BTreeMap<String, (Vec<u8>, u32)>> {
    let mut files = BTreeMap::new();
    for name in names {
        let program = Path::new("/usr/bin").join(name);
        let output = Command::new("ldd").arg(&program).output().context("cannot run ldd")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
        for file in std::iter::once(program).chain(libraries) {
            let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            files.insert(file.to_string_lossy().trim_start_matches('/').to_owned(), (content, 0o755));
        }
    }
    files.insert("etc/nsswitch.conf".to_owned(), (b"hosts: files dns\n".to_vec(), 0o644));
    Ok(files)
}

/// The images of the end-to-end test.
pub fn test_images() -> Result<Vec<Image>> {
    let script =
        |path: &'static str, text: &str| BTreeMap::from([(path.to_owned(), (text.as_bytes().to_vec(), 0o755))]);
    Ok(vec![
        Image { reference: "docker.io/library/busybox:1", files: BTreeMap::new(), command: vec!["sh"] },
        Image { reference: "docker.io/coxswain/web:1", files: script("web", WEB), command: vec!["/web"] },
        Image {
            reference: "docker.io/coxswain/web:2",
            files: script("web", &format!("{WEB}\n# 2\n")),
            command: vec!["/web"],
        },
        Image { reference: "docker.io/coxswain/tools:1", files: programs(&TOOLS)?, command: vec!["sh"] },
        Image { reference: "docker.io/coxswain/etcd:1", files: programs(&GRPC_SERVER)?, command: vec!["etcd"] },
    ])
}

/// Writes each image's tar into `dir` and returns the paths.
pub fn write_all(images: &[Image], dir: &Path) -> Result<Vec<PathBuf>> {
    let busybox = fs::read(BUSYBOX).with_context(|| format!("{BUSYBOX} is missing: apt-get install busybox-static"))?;
    fs::create_dir_all(dir)?;
    let write = |(index, image): (usize, &Image)| {
        let path = dir.join(format!("{index}.tar"));
        fs::write(&path, archive(image, &busybox)?)?;
        Ok(path)
    };
    images.iter().enumerate().map(write).collect()
}

fn archive(image: &Image, busybox: &[u8]) -> Result<Vec<u8>> {
    let layer = layer(image, busybox)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": image.command, "Env": ["PATH=/bin:/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))]},
    })
    .to_string();
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let manifest = json!([{"Config": config_name, "RepoTags": [image.reference], "Layers": ["layer.tar"]}]).to_string();
    let mut out = tar::Builder::new(Vec::new());
    file(&mut out, &config_name, config.as_bytes(), 0o644)?;
    file(&mut out, "layer.tar", &layer, 0o644)?;
    file(&mut out, "manifest.json", manifest.as_bytes(), 0o644)?;
    Ok(out.into_inner()?)
}

fn layer(image: &Image, busybox: &[u8]) -> Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    for (dir, mode) in
        [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777), ("usr/bin/", 0o755), ("var/", 0o755), ("root/", 0o700)]
    {
        entry(&mut out, dir, tar::EntryType::Directory, mode, None, &[])?;
    }
    file(&mut out, "bin/busybox", busybox, 0o755)?;
    for applet in APPLETS {
        entry(&mut out, &format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, Some("busybox"), &[])?;
    }
    file(&mut out, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644)?;
    file(&mut out, "etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644)?;
    for (path, (content, mode)) in &image.files {
        file(&mut out, path, content, *mode)?;
    }
    Ok(out.into_inner()?)
}

fn file(out: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    entry(out, path, tar::EntryType::Regular, mode, None, content)
}

fn entry(
    out: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    link: Option<&str>,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_mtime(0);
    if let Some(target) = link {
        header.set_link_name(target)?;
    }
    out.append_data(&mut header, path, content)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
