//! Stand-ins for the images that the conformance tests name, under exactly those names: nothing is pulled.
//!
//! Programs come from upstream's own tree where it has their source, and from Debian's packages otherwise. `STANDINS` says for each
//! image what stands there, `MISSING` which have none; a test that needs one of those cannot be run here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cache::Cache;
use super::oci::{self, Image, Layer, Node, Tree};

const BUSYBOX: &str = "/bin/busybox";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Image → what stands under its name, for people.
pub const STANDINS: &[(&str, &str)] = &[
    (
        "k8s.gcr.io/e2e-test-images/agnhost:2.21",
        "upstream's agnhost, from the suite's tree, with Debian's dig, curl, nc, ss and bash for Alpine's; without CoreDNS and iperf, which no conformance test runs",
    ),
    ("docker.io/library/busybox:1.29", "Debian's busybox-static"),
    ("docker.io/library/httpd:2.4.38-alpine", "Debian's Apache 2.4 with the official image's paths and page"),
    ("docker.io/library/httpd:2.4.39-alpine", "Debian's Apache 2.4 with the official image's paths and page"),
    ("docker.io/library/nginx:1.14-alpine", "Debian's nginx with the official image's paths and page"),
    ("docker.io/library/nginx:1.15-alpine", "Debian's nginx with the official image's paths and page"),
    (
        "gcr.io/kubernetes-e2e-test-images/nautilus:1.0",
        "agnhost's web server with the picture of the suite's tree, as upstream builds it",
    ),
    (
        "gcr.io/kubernetes-e2e-test-images/kitten:1.0",
        "agnhost's web server with the picture of the suite's tree, as upstream builds it",
    ),
    ("gcr.io/kubernetes-e2e-test-images/jessie-dnsutils:1.0", "Debian 12's dig and getent for Debian 8's"),
    (
        "gcr.io/kubernetes-e2e-test-images/nonewprivs:1.0",
        "upstream's program from the suite's tree, set-uid as upstream's image",
    ),
    ("gcr.io/kubernetes-e2e-test-images/nonroot:1.0", "busybox as user 1234"),
    (
        "gcr.io/kubernetes-e2e-test-images/sample-apiserver:1.17",
        "upstream's sample API server of 1.20, from the suite's tree: the same API group",
    ),
    ("k8s.gcr.io/etcd:3.4.13-0", "Debian's etcd 3.4"),
    ("k8s.gcr.io/pause:3.2", "upstream's pause, from the suite's tree"),
];

/// Image without a stand-in → why.
pub const MISSING: &[(&str, &str)] = &[
    ("gcr.io/authenticated-image-pulling/alpine:3.7", "lies in a registry that wants a login"),
    ("gcr.io/k8s-authenticated-test/agnhost:2.6", "lies in a registry that wants a login"),
    ("invalid.com/invalid/alpine:3.1", "must not exist: that is what its tests check"),
];

/// Programs that agnhost's and the DNS images carry.
const TOOLS: [&str; 9] = [
    "usr/bin/dig",
    "usr/bin/nslookup",
    "usr/bin/host",
    "usr/bin/curl",
    "usr/bin/nc.openbsd",
    "usr/bin/getent",
    "bin/ss",
    "sbin/ip",
    "bin/bash",
];
/// Applets that give way to the real program among the tools.
const REAL: [&str; 5] = ["nslookup", "nc", "ip", "bash", "getent"];

const APACHE_MODULES: [&str; 4] = ["mpm_event", "authz_core", "dir", "mime"];
const APACHE: &str = "ServerRoot /usr/local/apache2
ServerName localhost
Listen 80
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
TypesConfig /usr/local/apache2/conf/mime.types
DefaultRuntimeDir /usr/local/apache2/logs
PidFile /usr/local/apache2/logs/httpd.pid
User daemon
Group daemon
DocumentRoot /usr/local/apache2/htdocs
DirectoryIndex index.html
LogFormat \"%h %l %u %t \\\"%r\\\" %>s %b\" common
CustomLog /proc/self/fd/1 common
ErrorLog /proc/self/fd/2
";
const APACHE_PAGE: &str = "<html><body><h1>It works!</h1></body></html>\n";
const NGINX: &str = "user nginx;
worker_processes 1;
error_log /dev/stderr warn;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    default_type text/html;
    access_log /dev/stdout;
    server {
        listen 80;
        location / { root /usr/share/nginx/html; index index.html; }
    }
}
";
const NGINX_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n";
const MIME_TYPES: &str = "text/html html htm\ntext/plain txt\napplication/json json\nimage/jpeg jpg\n";
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:2:2:daemon:/sbin:/bin/false\nnginx:x:101:101:nginx:/:/bin/false\n\
                     nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUPS: &str = "root:x:0:\ndaemon:x:2:\nnginx:x:101:\nnobody:x:65534:\n";

/// Makes the archive of all images, if it is not there.
///
/// # Errors
/// If a program is missing: build the suite first.
pub fn all(cache: &Cache) -> Result<()> {
    let (target, stamp) = (cache.at("images.tar"), cache.at("images.made-by"));
    // This file says what they are: a change of it makes them anew.
    let made_by = include_str!("images.rs");
    if target.is_file() && fs::read_to_string(&stamp).is_ok_and(|text| text == made_by) {
        return Ok(());
    }
    println!("making the test images");
    let (layers, images) = images(cache)?;
    for (name, _) in STANDINS {
        if !images.iter().any(|image| image.references.contains(name)) {
            bail!("no image is made for {name}");
        }
    }
    let partial = target.with_extension("partial");
    oci::write(&partial, &layers, &images)?;
    fs::rename(partial, target)?;
    Ok(fs::write(stamp, made_by)?)
}

fn images(cache: &Cache) -> Result<(Vec<Layer>, Vec<Image>)> {
    let layers = [
        busybox()?,
        debian(cache, &TOOLS)?,
        agnhost(cache)?,
        picture(cache, "nautilus")?,
        picture(cache, "kitten")?,
        httpd(cache)?,
        nginx(cache)?,
        Tree::from([file("usr/local/bin/nnp", read(&cache.program("nonewprivs"))?, 0o6755)]),
        Tree::from([file("sample-apiserver", read(&cache.program("sample-apiserver"))?, 0o755)]),
        etcd(cache)?,
        Tree::from([file("pause", read(&cache.program("pause"))?, 0o755)]),
    ];
    let [busybox, tools, agnhost, nautilus, kitten, httpd, nginx, nnp, sample, etcd, pause] =
        std::array::from_fn(|at| at);
    let base = || Image { path: PATH, ..Image::default() };
    let agnhost_like =
        |layers: Vec<usize>, command| Image { layers, entrypoint: vec!["/agnhost"], command: vec![command], ..base() };
    let images = vec![
        Image {
            references: vec!["docker.io/library/busybox:1.29"],
            layers: vec![busybox],
            command: vec!["sh"],
            ..base()
        },
        Image {
            references: vec!["gcr.io/kubernetes-e2e-test-images/nonroot:1.0"],
            layers: vec![busybox],
            command: vec!["sh"],
            user: "1234",
            ..base()
        },
        Image {
            references: vec!["k8s.gcr.io/e2e-test-images/agnhost:2.21"],
            ..agnhost_like(vec![busybox, tools, agnhost], "pause")
        },
        Image {
            references: vec!["gcr.io/kubernetes-e2e-test-images/nautilus:1.0"],
            ..agnhost_like(vec![busybox, tools, agnhost, nautilus], "test-webserver")
        },
        Image {
            references: vec!["gcr.io/kubernetes-e2e-test-images/kitten:1.0"],
            ..agnhost_like(vec![busybox, tools, agnhost, kitten], "test-webserver")
        },
        Image {
            references: vec!["gcr.io/kubernetes-e2e-test-images/jessie-dnsutils:1.0"],
            layers: vec![busybox, tools],
            command: vec!["sh"],
            ..base()
        },
        Image {
            references: vec!["docker.io/library/httpd:2.4.38-alpine", "docker.io/library/httpd:2.4.39-alpine"],
            layers: vec![busybox, httpd],
            command: vec!["httpd-foreground"],
            path: "/usr/local/apache2/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            folder: "/usr/local/apache2",
            stop_signal: "SIGWINCH",
            ..base()
        },
        Image {
            references: vec!["docker.io/library/nginx:1.14-alpine", "docker.io/library/nginx:1.15-alpine"],
            layers: vec![busybox, nginx],
            command: vec!["nginx", "-g", "daemon off;"],
            stop_signal: "SIGTERM",
            ..base()
        },
        Image {
            references: vec!["gcr.io/kubernetes-e2e-test-images/nonewprivs:1.0"],
            layers: vec![busybox, nnp],
            command: vec!["nnp"],
            ..base()
        },
        Image {
            references: vec!["gcr.io/kubernetes-e2e-test-images/sample-apiserver:1.17"],
            layers: vec![busybox, sample],
            entrypoint: vec!["/sample-apiserver"],
            ..base()
        },
        Image {
            references: vec!["k8s.gcr.io/etcd:3.4.13-0"],
            layers: vec![busybox, etcd],
            command: vec!["etcd"],
            ..base()
        },
        Image { references: vec!["k8s.gcr.io/pause:3.2"], layers: vec![pause], entrypoint: vec!["/pause"], ..base() },
    ];
    Ok((layers.iter().map(Layer::new).collect::<Result<_>>()?, images))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn file(path: &str, content: impl Into<Vec<u8>>, mode: u32) -> (String, Node) {
    (path.to_owned(), Node::File { content: content.into(), mode })
}

fn folder(path: &str, mode: u32) -> (String, Node) {
    (path.to_owned(), Node::Folder { mode })
}

fn link(path: &str, target: &str) -> (String, Node) {
    (path.to_owned(), Node::Link { target: target.to_owned() })
}

fn busybox() -> Result<Tree> {
    let program = fs::read(BUSYBOX).with_context(|| format!("{BUSYBOX} is missing: apt-get install busybox-static"))?;
    let applets = Command::new(BUSYBOX).arg("--list").output()?;
    let mut tree = Tree::from([
        folder("dev/", 0o755),
        folder("etc/", 0o755),
        folder("home/", 0o755),
        folder("root/", 0o700),
        folder("run/", 0o755),
        folder("tmp/", 0o1777),
        folder("usr/sbin/", 0o755),
        folder("var/", 0o755),
        file("bin/busybox", program, 0o755),
        file("etc/passwd", USERS, 0o644),
        file("etc/group", GROUPS, 0o644),
        file("etc/nsswitch.conf", "hosts: files dns\n", 0o644),
    ]);
    let applets = String::from_utf8_lossy(&applets.stdout).into_owned();
    tree.extend(applets.lines().filter(|name| *name != "busybox").map(|name| link(&format!("bin/{name}"), "busybox")));
    Ok(tree)
}

/// Programs of the unpacked Debian packages, with the loader and every library that they are linked with.
fn debian(cache: &Cache, programs: &[&str]) -> Result<Tree> {
    let root = cache.at("rootfs");
    let loader = loader(&root)?;
    let mut wanted: BTreeSet<String> = BTreeSet::from([loader.clone()]);
    for program in programs {
        let output = Command::new("chroot")
            .arg(&root)
            .args([&format!("/{loader}"), "--list"])
            .arg(format!("/{program}"))
            .output()?;
        if !output.status.success() {
            bail!("{program}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        wanted.extend(text.split_whitespace().filter_map(|word| word.strip_prefix('/')).map(str::to_owned));
        wanted.insert((*program).to_owned());
    }
    let mut tree = Tree::new();
    for path in wanted {
        tree.insert(path.clone(), Node::File { content: read(&root.join(&path))?, mode: 0o755 });
    }
    for name in REAL {
        let own = programs
            .iter()
            .find(|program| program.rsplit('/').next().is_some_and(|n| n.split('.').next() == Some(name)));
        if let Some(own) = own
            && **own != format!("bin/{name}")
        {
            tree.extend([link(&format!("bin/{name}"), &format!("/{own}"))]);
        }
    }
    if programs.contains(&"bin/bash") {
        // Debian's busybox, as a shell, runs its applets even where a program of that name comes first on the path.
        tree.extend([link("bin/sh", "bash")]);
    }
    Ok(tree)
}

/// The dynamic loader's path in the unpacked packages, without leading slash.
fn loader(root: &Path) -> Result<String> {
    let known = ["lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1"];
    let found = known.into_iter().find(|path| root.join(path).exists());
    Ok(found.context("the unpacked packages have no loader")?.to_owned())
}

fn agnhost(cache: &Cache) -> Result<Tree> {
    let porter = cache.at("source/test/images/agnhost/porter");
    Ok(Tree::from([
        file("agnhost", read(&cache.program("agnhost"))?, 0o755),
        link("agnhost-2", "agnhost"),
        folder("uploads/", 0o755),
        file("localhost.crt", read(&porter.join("localhost.crt"))?, 0o644),
        file("localhost.key", read(&porter.join("localhost.key"))?, 0o644),
    ]))
}

fn picture(cache: &Cache, name: &str) -> Result<Tree> {
    let html = cache.at("source/test/images").join(name).join("html");
    let picture = format!("{name}.jpg");
    Ok(Tree::from([
        file(&picture, read(&html.join(&picture))?, 0o644),
        file("data.json", read(&html.join("data.json"))?, 0o644),
    ]))
}

fn httpd(cache: &Cache) -> Result<Tree> {
    let modules = APACHE_MODULES.map(|module| format!("usr/lib/apache2/modules/mod_{module}.so"));
    let mut programs: Vec<&str> = vec!["usr/sbin/apache2"];
    programs.extend(modules.iter().map(String::as_str));
    let mut tree = debian(cache, &programs)?;
    let start = "#!/bin/sh\nrm -f /usr/local/apache2/logs/httpd.pid\n\
                 exec /usr/sbin/apache2 -d /usr/local/apache2 -f conf/httpd.conf -DFOREGROUND \"$@\"\n";
    tree.extend([
        file("usr/local/apache2/bin/httpd-foreground", start, 0o755),
        link("usr/local/apache2/bin/httpd", "/usr/sbin/apache2"),
        file("usr/local/apache2/conf/httpd.conf", APACHE, 0o644),
        file("usr/local/apache2/conf/mime.types", MIME_TYPES, 0o644),
        file("usr/local/apache2/htdocs/index.html", APACHE_PAGE, 0o644),
        folder("usr/local/apache2/logs/", 0o755),
    ]);
    Ok(tree)
}

fn nginx(cache: &Cache) -> Result<Tree> {
    let mut tree = debian(cache, &["usr/sbin/nginx"])?;
    tree.extend([
        file("etc/nginx/nginx.conf", NGINX, 0o644),
        file("usr/share/nginx/html/index.html", NGINX_PAGE, 0o644),
        folder("var/lib/nginx/", 0o755),
        folder("var/lock/", 0o755),
        folder("var/log/nginx/", 0o755),
    ]);
    Ok(tree)
}

fn etcd(cache: &Cache) -> Result<Tree> {
    let mut tree = debian(cache, &["usr/bin/etcd"])?;
    tree.extend([link("usr/local/bin/etcd", "/usr/bin/etcd")]);
    Ok(tree)
}

/// The image that our own tests run in the cluster: their program, with the libraries of this machine that it is linked with.
pub fn ours(program: &Path, target: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut tree = Tree::from([file("conformance", read(program)?, 0o755)]);
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        tree.extend([file(library.trim_start_matches('/'), read(Path::new(library))?, 0o755)]);
    }
    let image = Image {
        references: vec!["docker.io/coxswain/conformance:1"],
        layers: vec![0, 1],
        command: vec!["/conformance"],
        path: PATH,
        ..Image::default()
    };
    oci::write(target, &[Layer::new(&busybox()?)?, Layer::new(&tree)?], &[image])
}

/// Prints the table of stand-ins.
pub fn describe() {
    for (name, what) in STANDINS {
        println!("{name}: {what}");
    }
    for (name, why) in MISSING {
        println!("{name}: none: {why}");
    }
}
