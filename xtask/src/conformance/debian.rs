//! Packages of Debian, through an apt configuration of our own: neither the machine's sources nor its packages change.
//!
//! The mirror is that of the machine's own sources. Knows nothing of what the packages are for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cache::Cache;
use crate::e2e::host::run;

/// The release that has the suite's source package and the programs of the images.
const RELEASE: &str = "bookworm";
/// The release that has Go 1.15.
const GO_RELEASE: &str = "bullseye";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Our apt configuration.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Writes the configuration and fetches the package lists.
    ///
    /// # Errors
    /// If the machine is no Debian, or its mirror cannot be reached.
    pub fn open(cache: &Cache) -> Result<Self> {
        let apt = Apt { folder: cache.at("apt") };
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.folder.join(folder))?;
        }
        let mirror = mirror()?;
        let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let sources = [("deb-src", RELEASE), ("deb", RELEASE), ("deb", GO_RELEASE)]
            .map(|(kind, release)| format!("{kind} {signed}{mirror} {release} main\n"));
        fs::write(apt.folder.join("sources.list"), sources.concat())?;
        // With nothing installed, as this says, apt fetches all that a package depends on.
        fs::write(apt.folder.join("nothing-installed"), "")?;
        let at = apt.folder.display();
        let config = format!(
            "Dir::State::lists \"{at}/lists\";\nDir::Cache \"{at}/cache\";\nDir::Etc::sourcelist \"{at}/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\nAPT::Sandbox::User \"root\";\nAPT::Default-Release \"{RELEASE}\";\n"
        );
        fs::write(apt.folder.join("apt.conf"), config)?;
        run(&mut apt.get(&["update", "-qq"]))?;
        Ok(apt)
    }

    fn get(&self, words: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.args(words).env("APT_CONFIG", self.folder.join("apt.conf"));
        command
    }

    /// Fetches a source package's files into `folder`, unpacking nothing.
    pub fn source(&self, package: &str, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        run(self.get(&["source", "-qq", "--download-only", package]).current_dir(folder))
    }

    /// Fetches packages of the release that has Go 1.15 into `folder`.
    pub fn download_old(&self, packages: &[&str], folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        run(self.get(&["download", "-qq", "-t", GO_RELEASE]).args(packages).current_dir(folder))
    }

    /// Fetches packages with all that they depend on into `folder`.
    pub fn download_closure(&self, packages: &[&str], folder: &Path) -> Result<()> {
        fs::create_dir_all(folder.join("partial"))?;
        let options = [
            format!("Dir::State::status={}", self.folder.join("nothing-installed").display()),
            format!("Dir::Cache::archives={}/", folder.display()),
            "Debug::NoLocking=1".to_owned(),
        ];
        let mut command = self.get(&["install", "-qq", "-y", "--no-install-recommends", "--download-only"]);
        run(command.args(options.iter().flat_map(|option| ["-o", option])).args(packages))
    }
}

/// The address of the mirror from which this machine's own Debian comes.
fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("no /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
        .output()
        .context("cannot run apt-get; the suite is built from Debian's packages")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let own = |line: &&str| line.ends_with(&format!(" {codename} main"));
    let Some(line) = text.lines().find(own) else {
        bail!("apt has no source for {codename} main, so no mirror is known")
    };
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

/// Unpacks every package of `folder` below `root`, whose `/bin`, `/lib` … are links into `/usr`, as Debian's are.
///
/// # Errors
/// If `folder` holds no package.
pub fn unpack_all(folder: &Path, root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    let packages = packages(folder)?;
    if packages.is_empty() {
        bail!("{} holds no package", folder.display());
    }
    for package in packages {
        let script = "dpkg-deb --fsys-tarfile \"$1\" | tar --extract --keep-directory-symlink --directory \"$2\"";
        run(Command::new("sh").args(["-euc", script, "sh"]).arg(package).arg(root))?;
    }
    Ok(())
}

/// The packages that lie in `folder`.
pub fn packages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "deb"))
        .collect();
    found.sort();
    Ok(found)
}
