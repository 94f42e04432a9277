//! Where the built suite lies. Outside the repository, so that it outlives a clean clone.
//!
//! `$XDG_CACHE_HOME/coxswain-conformance`, or `~/.cache/coxswain-conformance`:
//!
//! | path | what |
//! |---|---|
//! | `bin/e2e.test`, `bin/kubectl` | upstream's suite and the kubectl of the same version (v1.20.2) |
//! | `bin/kube-apiserver`, `bin/kube-controller-manager`, `bin/kube-scheduler`, `bin/kubelet`, `bin/kube-proxy`, `bin/kubemark` | upstream's cluster of the same version, to compare with |
//! | `bin/agnhost`, `bin/nonewprivs`, `bin/pause`, `bin/sample-apiserver` | programs of the test images |
//! | `rootfs/` | Debian programs for the test images, and `rootfs/usr/bin/etcd` for upstream's API server |
//! | `images.tar` | all test images in `docker save` form |
//! | `source/` | upstream's tree: the suite's `--repo-root` |
//! | `goroot/`, `gopath/`, `gocache/` | the Go 1.15 that builds it, and what it needs |
//! | `apt/`, `downloads/`, `packages/` | an apt configuration of our own, and what it fetched |

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The version of the suite: the newest that can be built without a network of Go modules.
pub const VERSION: &str = "v1.20.2";

/// The cache folder; need not exist.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// # Errors
    /// If neither `$XDG_CACHE_HOME` nor `$HOME` is set.
    pub fn open() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        Ok(Cache { root: base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("coxswain-conformance") })
    }

    /// A file or folder below the cache.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A built program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// Whether a run needs no build first.
    pub fn complete(&self) -> bool {
        self.program("e2e.test").is_file() && self.program("kubectl").is_file() && self.at("images.tar").is_file()
    }
}
