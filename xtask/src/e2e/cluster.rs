//! One cluster under test: start, kill, start again, stop without leaving anything behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::host::{BRIDGE, NODE_IP, run};
use crate::image;

const NODE: &str = "node-1";
/// The machine that tests may have a full disk; that is not what is tested, and images cannot be pulled again.
const UNBOTHERED: &str =
    "--kubelet-arg 'eviction-hard=memory.available<100Mi' --kubelet-arg image-gc-high-threshold=100";
const START: &str = r#"eval "set -- $KUBELET_ARGS"
setsid "$BINARY" server --data-dir "$DATA" --node-name node-1 --node-ip "$SERVER" $DATASTORE "$@" --log-level info,coxswain=debug \
  </dev/null >>"$WORK/server.log" 2>&1 &
echo $! >"$WORK/server.pid"
"#;
const READY_WITHIN: Duration = Duration::from_secs(30);

pub struct Cluster {
    work: PathBuf,
    /// With which the runner itself looks at the cluster.
    kubectl: PathBuf,
}

impl Cluster {
    /// Starts from nothing: whatever an earlier run left in `work` goes first.
    pub fn start(binary: &Path, work: &Path, kubectl: &Path) -> Result<Self> {
        Cluster::start_on("", binary, work, kubectl)
    }

    /// As `start`, with a server that has these flags for its data store.
    pub fn start_on(datastore: &str, binary: &Path, work: &Path, kubectl: &Path) -> Result<Self> {
        let cluster = Cluster::prepare_on(datastore, binary, work, kubectl)?;
        let started = Instant::now();
        run(&mut cluster.script("cluster-start"))?;
        cluster.wait_ready(started)?;
        cluster.load_images()?;
        Ok(cluster)
    }

    /// As `start`, but nothing runs yet: whoever measures the start does it with [`Cluster::starter`].
    pub fn prepare(binary: &Path, work: &Path, kubectl: &Path) -> Result<Self> {
        Cluster::prepare_on("", binary, work, kubectl)
    }

    fn prepare_on(datastore: &str, binary: &Path, work: &Path, kubectl: &Path) -> Result<Self> {
        let cluster = Cluster { work: work.to_owned(), kubectl: kubectl.to_owned() };
        cluster.stop();
        let _ = fs::remove_dir_all(work);
        fs::create_dir_all(work)?;
        cluster.write_scripts(binary, datastore)?;
        Ok(cluster)
    }

    /// The program that starts the server in the background.
    pub fn starter(&self) -> PathBuf {
        self.bin().join("cluster-start")
    }

    /// The administrator's, which the server writes.
    pub fn admin(&self) -> PathBuf {
        self.data().join("kubeconfig.yaml")
    }

    /// Server and containerd.
    pub fn pids(&self) -> Result<Vec<String>> {
        let files = [self.work.join("server.pid"), self.data().join("containerd/state/containerd.pid")];
        let read = |file: &PathBuf| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        files.iter().map(|file| Ok(read(file)?.trim().to_owned())).collect()
    }

    fn data(&self) -> PathBuf {
        self.work.join("data")
    }

    fn bin(&self) -> PathBuf {
        self.work.join("bin")
    }

    fn script(&self, name: &str) -> Command {
        Command::new(self.bin().join(name))
    }

    /// Commands that scenarios use as well: start, stop, kill, further nodes.
    fn write_scripts(&self, binary: &Path, datastore: &str) -> Result<()> {
        let (prefix, _) = NODE_IP.rsplit_once('.').context("an IPv4 address")?;
        let head = format!(
            "#!/bin/sh -eu\nBINARY={} WORK={} DATA={} SERVER={NODE_IP} PREFIX={prefix} BRIDGE={BRIDGE}\nKUBELET_ARGS=\"{UNBOTHERED}\" DATASTORE=\"{datastore}\"\n",
            binary.display(),
            self.work.display(),
            self.data().display(),
        );
        fs::create_dir_all(self.bin())?;
        for (name, text) in [
            ("cluster-start", START),
            ("cluster-kill", "exec cluster-signal \"${1:-server}\" KILL\n"),
            ("cluster-stop", "exec cluster-signal \"${1:-server}\" TERM\n"),
            ("cluster-signal", include_str!("cluster-signal.sh")),
            ("cluster-join", include_str!("cluster-join.sh")),
            ("cluster-leave", include_str!("cluster-leave.sh")),
            ("cluster-rejoin", include_str!("cluster-rejoin.sh")),
        ] {
            let path = self.bin().join(name);
            fs::write(&path, format!("{head}PATH={}:$PATH\n{text}", self.bin().display()))?;
            run(Command::new("chmod").arg("+x").arg(path))?;
        }
        Ok(())
    }

    /// Starts `node-<number>` on a host of its own, and gives it the images. The server is `node-1`.
    pub fn join(&self, number: u32) -> Result<()> {
        self.tools(&self.kubectl)?;
        run(self.script("cluster-join").arg(number.to_string()))
    }

    fn wait_ready(&self, started: Instant) -> Result<()> {
        let kubeconfig = self.data().join("kubeconfig.yaml");
        let ready = |what: &[&str]| {
            let output = Command::new(&self.kubectl).arg("--kubeconfig").arg(&kubeconfig).args(what).output();
            output.is_ok_and(|o| o.status.success() && String::from_utf8_lossy(&o.stdout).contains("True"))
        };
        let condition = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        while !ready(&["get", "nodes", "-o", condition]) {
            if started.elapsed() > READY_WITHIN {
                let log = fs::read_to_string(self.work.join("server.log")).unwrap_or_default();
                bail!("the node is not ready after {READY_WITHIN:?}; the server said:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("node ready {:.2}s after the start of the server", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Imports the images of tests.
    pub fn load_images(&self) -> Result<()> {
        let socket = self.socket();
        for tar in image::write_all(&image::test_images()?, &self.work.join("images"))? {
            let mut ctr = Command::new("ctr");
            ctr.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "import"]).arg(tar);
            let output = ctr.output().context("cannot run ctr")?;
            if !output.status.success() {
                bail!("image import: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.data().join("containerd/state/containerd.sock")
    }

    /// A folder for `$PATH` in which `kubectl` is the one to test with.
    pub fn tools(&self, kubectl: &Path) -> Result<PathBuf> {
        let link = self.bin().join("kubectl");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(kubectl, link)?;
        Ok(self.bin())
    }

    /// An administrator's kubeconfig whose default namespace is `namespace`, which is made.
    pub fn kubeconfig(&self, namespace: &str) -> Result<PathBuf> {
        let admin = self.data().join("kubeconfig.yaml");
        let path = self.work.join(format!("{namespace}.kubeconfig"));
        fs::copy(&admin, &path)?;
        let kubectl = || {
            let mut command = Command::new(&self.kubectl);
            command.arg("--kubeconfig").arg(&path);
            command
        };
        let made = kubectl().args(["create", "namespace", namespace]).output()?;
        if !made.status.success() {
            bail!("create namespace: {}", String::from_utf8_lossy(&made.stderr));
        }
        kubectl().args(["config", "set-context", "--current", "--namespace", namespace]).output()?;
        Ok(path)
    }

    /// Has a namespace deleted, without waiting: a pod may take its whole grace to go.
    pub fn leave(&self, namespace: &str) -> Result<()> {
        let admin = self.data().join("kubeconfig.yaml");
        let mut kubectl = Command::new(&self.kubectl);
        kubectl.arg("--kubeconfig").arg(admin).args(["delete", "namespace", namespace, "--wait=false"]);
        let output = kubectl.output()?;
        if output.status.success() {
            return Ok(());
        }
        bail!("delete namespace: {}", String::from_utf8_lossy(&output.stderr))
    }

    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("NODE", NODE.to_owned()),
            ("NODE_IP", NODE_IP.to_owned()),
            ("DATA", self.data().display().to_string()),
            ("CONTAINERD", self.socket().display().to_string()),
        ]
    }

    pub fn describe(&self) -> String {
        let pid = fs::read_to_string(self.work.join("server.pid")).unwrap_or_default();
        format!(
            "nsenter --net=/proc/{}/ns/net kubectl --kubeconfig {}",
            pid.trim(),
            self.data().join("kubeconfig.yaml").display()
        )
    }

    /// What one would look at first after a failure: pods that do not run, warnings, and the last complaints in the logs. Kept to a
    /// screen, since a CI service may show no more.
    pub fn diagnosis(&self) -> String {
        let kubectl = |words: &[&str]| {
            let kubeconfig = self.data().join("kubeconfig.yaml");
            let output = Command::new(&self.kubectl).arg("--kubeconfig").arg(kubeconfig).args(words).output();
            output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
        };
        let pods = kubectl(&["get", "pods", "-A", "--no-headers", "-o", "wide"]);
        let warnings = kubectl(&["get", "events", "-A", "--no-headers", "--field-selector", "type=Warning"]);
        let log = |file: &str| fs::read_to_string(self.data().join(file)).unwrap_or_default();
        let server = fs::read_to_string(self.work.join("server.log")).unwrap_or_default();
        let complaint =
            |line: &&str| [" WARN ", "ERROR ", "level=error", "level=fatal"].iter().any(|word| line.contains(word));
        let mut text = String::new();
        for (title, all, filter) in [
            ("pods", pods.as_str(), &(|_: &&str| true) as &dyn Fn(&&str) -> bool),
            ("warnings", warnings.as_str(), &|_: &&str| true),
            ("server", server.as_str(), &complaint),
            ("containerd", log("containerd/containerd.log").as_str(), &complaint),
        ] {
            let lines: Vec<&str> = all.lines().filter(filter).collect();
            for line in &lines[lines.len().saturating_sub(6)..] {
                let shown: String = line.chars().take(400).collect();
                text.push_str(&format!("  {title}: {shown}\n"));
            }
        }
        text
    }

    /// Stops the server, then containerd and every container and mount of this cluster. Errors do not matter: there may be none.
    pub fn stop(&self) {
        let quiet = |program: &str, words: &[&str]| {
            let _ = Command::new(program).args(words).output();
        };
        if let Ok(pid) = fs::read_to_string(self.work.join("server.pid")) {
            quiet("kill", &["-TERM", pid.trim()]);
            std::thread::sleep(Duration::from_millis(500));
        }
        let work = self.work.display().to_string();
        kill_with_descendants(&work);
        let _ = fs::remove_file(self.work.join("server.pid"));
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mut points: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|p| p.starts_with(&work)).collect();
        points.sort_unstable_by_key(|p| std::cmp::Reverse(p.len()));
        for point in points {
            quiet("umount", &["-l", point]);
        }
    }
}

/// Kills every server, containerd and shim that was started on `folder` (each names it on its command line), and with the shims
/// their containers, which would live on otherwise.
pub fn kill_with_descendants(folder: &str) {
    let processes: Vec<(i32, i32, String)> =
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(process).collect();
    let mut doomed: Vec<i32> = processes
        .iter()
        .filter(|(_, _, command)| {
            command.contains(folder)
                && ["containerd", " server --data-dir", " agent --server"].iter().any(|part| command.contains(part))
        })
        .map(|(pid, _, _)| *pid)
        .collect();
    let mut at = 0;
    while at < doomed.len() {
        let parent = doomed[at];
        let children: Vec<i32> = processes
            .iter()
            .filter(|(pid, of, _)| *of == parent && !doomed.contains(pid))
            .map(|(pid, _, _)| *pid)
            .collect();
        doomed.extend(children);
        at += 1;
    }
    for pid in doomed {
        // Gone already, at worst.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Pid, parent's pid and command line.
fn process(entry: fs::DirEntry) -> Option<(i32, i32, String)> {
    let pid = entry.file_name().to_str()?.parse().ok()?;
    let status = fs::read_to_string(entry.path().join("status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let command = fs::read(entry.path().join("cmdline")).ok()?;
    let words: Vec<String> =
        command.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some((pid, parent, words.join(" ")))
}
