//! An etcd for the cluster under test, with certificates on both sides as an operator would have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::host::run;

const CLIENT_URL: &str = "https://127.0.0.1:2379";
const METRICS_URL: &str = "http://127.0.0.1:2381";

/// Makes an authority and a certificate that serves both sides.
const CERTIFICATES: &str = r#"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=etcd-ca -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=etcd -keyout etcd.key -out etcd.csr
printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >extensions
openssl x509 -req -in etcd.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile extensions -out etcd.crt
"#;

/// Ends with this value.
pub struct Etcd {
    dir: PathBuf,
    process: Child,
}

impl Etcd {
    /// Starts one member on loopback, on an empty folder.
    pub fn start(dir: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
        let made = Command::new("sh").args(["-euc", CERTIFICATES]).current_dir(dir).output()?;
        if !made.status.success() {
            bail!("openssl: {}", String::from_utf8_lossy(&made.stderr));
        }
        let log = fs::File::create(dir.join("etcd.log"))?;
        let process = Command::new("etcd")
            .args(["--name=e2e", "--data-dir=data", "--client-cert-auth", "--logger=zap"])
            .args(["--cert-file=etcd.crt", "--key-file=etcd.key", "--trusted-ca-file=ca.crt"])
            .args([format!("--listen-client-urls={CLIENT_URL}"), format!("--advertise-client-urls={CLIENT_URL}")])
            .args([format!("--listen-metrics-urls={METRICS_URL}"), "--listen-peer-urls=http://127.0.0.1:2380".into()])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start etcd")?;
        let etcd = Etcd { dir: dir.to_owned(), process };
        etcd.wait()?;
        Ok(etcd)
    }

    fn wait(&self) -> Result<()> {
        let started = Instant::now();
        let mut health = Command::new("curl");
        health.args(["--silent", "--fail", &format!("{METRICS_URL}/health")]).stdout(Stdio::null());
        while run(&mut health).is_err() {
            if started.elapsed() > Duration::from_secs(20) {
                bail!("etcd does not start: {}", fs::read_to_string(self.dir.join("etcd.log"))?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The flags of a server that uses it, for a shell.
    pub fn flags(&self) -> String {
        let file = |name: &str| self.dir.join(name).display().to_string();
        format!(
            "--datastore-endpoint={CLIENT_URL} --datastore-cafile={} --datastore-certfile={} --datastore-keyfile={}",
            file("ca.crt"),
            file("etcd.crt"),
            file("etcd.key")
        )
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
