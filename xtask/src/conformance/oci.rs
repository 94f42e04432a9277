//! Container images of several layers in one archive of `docker save` form. Knows nothing of what is in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Result;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// What lies at a path of a layer. All belongs to root.
pub enum Node {
    Folder { mode: u32 },
    File { content: Vec<u8>, mode: u32 },
    Link { target: String },
}

/// Path without leading slash → what lies there. Folders need an entry only for a mode other than 0755.
pub type Tree = BTreeMap<String, Node>;

/// A layer: an uncompressed tar, and its digest.
pub struct Layer {
    tar: Vec<u8>,
    digest: String,
}

impl Layer {
    pub fn new(tree: &Tree) -> Result<Self> {
        let mut out = tar::Builder::new(Vec::new());
        for (path, node) in tree {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            let (kind, mode, content): (_, _, &[u8]) = match node {
                Node::Folder { mode } => (tar::EntryType::Directory, *mode, &[]),
                Node::File { content, mode } => (tar::EntryType::Regular, *mode, content),
                Node::Link { target } => {
                    header.set_link_name(target)?;
                    (tar::EntryType::Symlink, 0o777, &[])
                }
            };
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(content.len() as u64);
            out.append_data(&mut header, path, content)?;
        }
        let tar = out.into_inner()?;
        Ok(Layer { digest: hex(&Sha256::digest(&tar)), tar })
    }
}

/// An image: its names, its layers from the lowest up (indices into the archive's), and how it is started.
#[derive(Default)]
pub struct Image {
    pub references: Vec<&'static str>,
    pub layers: Vec<usize>,
    pub entrypoint: Vec<&'static str>,
    pub command: Vec<&'static str>,
    pub path: &'static str,
    pub folder: &'static str,
    pub user: &'static str,
    pub stop_signal: &'static str,
}

impl Image {
    fn config(&self, layers: &[Layer]) -> String {
        let digests: Vec<String> = self.layers.iter().map(|&at| format!("sha256:{}", layers[at].digest)).collect();
        json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Env": [format!("PATH={}", self.path)],
                "WorkingDir": self.folder,
                "User": self.user,
                "StopSignal": self.stop_signal,
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
        })
        .to_string()
    }
}

/// Writes all images into one archive, each layer once.
pub fn write(path: &Path, layers: &[Layer], images: &[Image]) -> Result<()> {
    let mut out = tar::Builder::new(BufWriter::new(File::create(path)?));
    let mut add = |name: &str, content: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        Ok(out.append_data(&mut header, name, content)?)
    };
    for layer in layers {
        add(&format!("{}.tar", layer.digest), &layer.tar)?;
    }
    let mut manifest = Vec::new();
    for image in images {
        let config = image.config(layers);
        let name = format!("{}.json", hex(&Sha256::digest(&config)));
        add(&name, config.as_bytes())?;
        let files: Vec<String> = image.layers.iter().map(|&at| format!("{}.tar", layers[at].digest)).collect();
        manifest.push(json!({"Config": name, "RepoTags": image.references, "Layers": files}));
    }
    add("manifest.json", serde_json::Value::Array(manifest).to_string().as_bytes())?;
    Ok(out.into_inner()?.flush()?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
