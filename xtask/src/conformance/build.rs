//! Builds the official suite, once, from Debian's source package of Kubernetes with Debian's Go 1.15.
//!
//! Go 1.19 compiles it as well, but what it makes crashes now and then: an old reflect2 lies in the vendored JSON library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cache::{Cache, VERSION};
use super::debian::{self, Apt};
use crate::e2e::host::run;

const SOURCE_PACKAGE: &str = "kubernetes";
const GO_PACKAGES: [&str; 2] = ["golang-1.15-go", "golang-1.15-src"];
/// Debian packages whose programs the test images carry.
const IMAGE_PACKAGES: [&str; 9] =
    ["libc-bin", "bind9-dnsutils", "curl", "netcat-openbsd", "iproute2", "bash", "nginx", "apache2-bin", "etcd-server"];

/// Go packages below `k8s.io/kubernetes` that become programs named after their last folder: what a run of the suite needs beside it.
const SUITE: [&str; 4] =
    ["cmd/kubectl", "test/images/agnhost", "test/images/nonewprivs", "vendor/k8s.io/sample-apiserver"];
/// Upstream's cluster.
const UPSTREAM: [&str; 6] = [
    "cmd/kube-apiserver",
    "cmd/kube-controller-manager",
    "cmd/kube-scheduler",
    "cmd/kubelet",
    "cmd/kube-proxy",
    "cmd/kubemark",
];

/// What the tree's own code generation would have made of the manifests. The suite reads them below `--repo-root` instead.
const NO_BINDATA: &str = "package generated

import \"os\"

// Asset finds nothing: nothing is embedded.
func Asset(name string) ([]byte, error) {
	return nil, &os.PathError{Op: \"asset\", Path: name, Err: os.ErrNotExist}
}

// AssetNames is empty.
func AssetNames() []string { return nil }
";

/// Makes what is missing in the cache of what a run of the suite needs.
///
/// # Errors
/// If a package cannot be fetched or a program does not compile.
pub fn suite(cache: &Cache) -> Result<()> {
    let mut programs = SUITE.map(name).into_iter().chain(["e2e.test", "pause"]);
    if programs.all(|program| cache.program(program).is_file()) && cache.at("rootfs").is_dir() && is_adapted(cache) {
        return Ok(());
    }
    println!("building the conformance suite {VERSION} below {}", cache.at("").display());
    prepare(cache)?;
    programs_of_images(cache)?;
    pause(cache)?;
    let version = linked_version();
    compile(cache, "e2e.test", &["test", "-c", "-p", "2", "-ldflags", &version], "test/e2e")?;
    programs_of(cache, &SUITE)
}

/// Makes what is missing of upstream's own cluster, which other commands compare with.
///
/// # Errors
/// As [`suite`].
pub fn upstream(cache: &Cache) -> Result<()> {
    if UPSTREAM.map(name).iter().all(|program| cache.program(program).is_file()) {
        return Ok(());
    }
    println!("building upstream's cluster {VERSION} below {}", cache.at("").display());
    prepare(cache)?;
    openapi(cache)?;
    programs_of(cache, &UPSTREAM)
}

fn prepare(cache: &Cache) -> Result<()> {
    fs::create_dir_all(cache.at("bin"))?;
    fetch(cache)?;
    tree(cache)?;
    go_root(cache)
}

fn programs_of(cache: &Cache, packages: &[&str]) -> Result<()> {
    let version = linked_version();
    let words = ["build", "-p", "2", "-ldflags", &version];
    packages.iter().try_for_each(|package| compile(cache, name(package), &words, package))
}

fn linked_version() -> String {
    format!("-s -w {}", version_flags())
}

fn name(package: &str) -> &str {
    package.rsplit('/').next().unwrap_or(package)
}

fn fetch(cache: &Cache) -> Result<()> {
    let (downloads, packages) = (cache.at("downloads"), cache.at("packages"));
    if original(&downloads).is_ok()
        && debian::packages(&downloads)?.len() == GO_PACKAGES.len()
        && packages.join("fetched").is_file()
    {
        return Ok(());
    }
    let apt = Apt::open(cache)?;
    apt.source(SOURCE_PACKAGE, &downloads)?;
    apt.download_old(&GO_PACKAGES, &downloads)?;
    apt.download_closure(&IMAGE_PACKAGES, &packages)?;
    Ok(fs::write(packages.join("fetched"), "")?)
}

/// Upstream's own archive.
fn original(downloads: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(downloads)?.flatten().map(|entry| entry.path());
    files.find(|file| file.to_string_lossy().ends_with(".orig.tar.gz")).context("the source package was not fetched")
}

/// Makes `target` in a folder beside it first, so that what is there is whole.
fn whole(target: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let partial = target.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    make(&partial)?;
    Ok(fs::rename(&partial, target)?)
}

fn tree(cache: &Cache) -> Result<()> {
    let source = cache.at("source");
    if source.is_dir() && !is_adapted(cache) {
        for program in ADAPTED.map(|program| cache.program(program)).iter().filter(|program| program.is_file()) {
            fs::remove_file(program)?;
        }
        fs::remove_dir_all(&source)?;
    }
    whole(&source, |folder| {
        let archive = original(&cache.at("downloads"))?;
        run(Command::new("tar").arg("xzf").arg(archive).arg("--strip-components=1").arg("-C").arg(folder))?;
        fs::write(folder.join("test/e2e/generated/bindata.go"), NO_BINDATA)?;
        adapt(folder)
    })?;
    let link = cache.at("gopath/src/k8s.io/kubernetes");
    fs::create_dir_all(cache.at("gopath/src/k8s.io"))?;
    let _ = fs::remove_file(&link);
    Ok(std::os::unix::fs::symlink(source, link)?)
}

/// What upstream changed in the suite itself since, because Kubernetes changed: file, what it says, what it says instead. Nothing that
/// a test checks is among them.
const ADAPTATIONS: [(&str, &str, &str); 2] = [
    // Since v1.24 there is no token Secret in a new service account to wait for: that the account is there is enough.
    ("test/e2e/framework/util.go", "return len(t.Secrets) > 0, nil", "return t != nil, nil"),
    // Since v1.34 a time that is not set is left out of JSON, so of a ControllerRevision's bytes as well.
    (
        "pkg/controller/daemon/update.go",
        "template[\"$patch\"] = \"replace\"",
        "template[\"$patch\"] = \"replace\"\n\tdelete(template[\"metadata\"].(map[string]interface{}), \"creationTimestamp\")",
    ),
];
/// Programs that an adaptation changes.
const ADAPTED: [&str; 2] = ["e2e.test", "kube-controller-manager"];
/// Below the tree: the adaptations that it has.
const ADAPTATIONS_MADE: &str = ".adaptations";

/// Whether the tree, and so what was built of it, is adapted as this program would.
fn is_adapted(cache: &Cache) -> bool {
    let made = fs::read_to_string(cache.at("source").join(ADAPTATIONS_MADE));
    made.is_ok_and(|made| made == format!("{ADAPTATIONS:?}"))
}

fn adapt(tree: &Path) -> Result<()> {
    for (file, before, after) in ADAPTATIONS {
        let path = tree.join(file);
        let text = fs::read_to_string(&path)?;
        if text.matches(before).count() != 1 {
            bail!("{file} does not say {before:?} once");
        }
        fs::write(path, text.replacen(before, after, 1))?;
    }
    Ok(fs::write(tree.join(ADAPTATIONS_MADE), format!("{ADAPTATIONS:?}"))?)
}

/// Debian spreads Go over two packages and links between them; Go wants its sources to be a folder.
fn go_root(cache: &Cache) -> Result<()> {
    whole(&cache.at("goroot"), |folder| {
        let unpacked = folder.join("debian");
        for package in debian::packages(&cache.at("downloads"))? {
            run(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
        }
        let script = "lib=debian/usr/lib/go-1.15 share=debian/usr/share/go-1.15
            mv $lib/bin $lib/pkg $lib/VERSION . && mv $share/src . && rm -f pkg/include && mv $share/pkg/include pkg/ && rm -r debian";
        run(Command::new("sh").args(["-euc", script]).current_dir(folder))
    })
}

fn programs_of_images(cache: &Cache) -> Result<()> {
    whole(&cache.at("rootfs"), |folder| debian::unpack_all(&cache.at("packages"), folder))
}

/// Upstream's pause is a page of C.
fn pause(cache: &Cache) -> Result<()> {
    let source = cache.at("source/build/pause/linux/pause.c");
    let version = "-DVERSION=3.2";
    run(Command::new("cc").args(["-Os", "-static", version, "-o"]).arg(cache.program("pause")).arg(source))
}

fn go(cache: &Cache, words: &[&str]) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "10"])
        .arg(cache.at("goroot/bin/go"))
        .args(words)
        .current_dir(cache.at("gopath/src/k8s.io/kubernetes"))
        // The shell's idea of the folder, through the link: Go finds its place in GOPATH by it.
        .env("PWD", cache.at("gopath/src/k8s.io/kubernetes"))
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "")
        // The compiler's processes are short: a third of their time would go into collecting garbage.
        .env("GOGC", "400")
        .env("GOROOT", cache.at("goroot"))
        .env("GOPATH", cache.at("gopath"))
        .env("GOCACHE", cache.at("gocache"));
    command
}

fn compile(cache: &Cache, program: &str, words: &[&str], package: &str) -> Result<()> {
    let target = cache.program(program);
    if target.is_file() {
        return Ok(());
    }
    println!("building {program}");
    let partial = target.with_extension("partial");
    run(go(cache, words).arg("-o").arg(&partial).arg(format!("k8s.io/kubernetes/{package}")))?;
    Ok(fs::rename(partial, target)?)
}

/// Without a version from the build, servers refuse to start and clients call themselves v0.0.0.
fn version_flags() -> String {
    let minor = VERSION.split('.').nth(1).unwrap_or_default();
    let of = |package: &str| {
        // Linked in from `vendor`, they are called so.
        let variable = format!("-X k8s.io/kubernetes/vendor/k8s.io/{package}");
        format!("{variable}.gitVersion={VERSION} {variable}.gitMajor=1 {variable}.gitMinor={minor}")
    };
    ["component-base/version", "client-go/pkg/version"].map(of).join(" ")
}

/// Generates the OpenAPI definitions that the API server is linked with, which the package does not carry.
fn openapi(cache: &Cache) -> Result<()> {
    if cache.at("source/pkg/generated/openapi/zz_generated.openapi.go").is_file() {
        return Ok(());
    }
    compile(cache, "openapi-gen", &["build", "-p", "2"], "vendor/k8s.io/kube-openapi/cmd/openapi-gen")?;
    let marked = "for part in pkg cmd plugin staging/src/k8s.io; do grep -rl --include='*.go' '+k8s:openapi-gen=' $part || true; done";
    let output = Command::new("sh").args(["-euc", marked]).current_dir(cache.at("source")).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut packages: Vec<String> = text
        .lines()
        .filter(|file| !file.contains("/code-generator/") && !file.contains("/sample-apiserver/"))
        .filter_map(|file| Some(Path::new(file).parent()?.to_string_lossy().replacen("staging/src/", "vendor/", 1)))
        .map(|folder| format!("k8s.io/kubernetes/{folder}"))
        .collect();
    packages.sort();
    packages.dedup();
    if packages.is_empty() {
        bail!("no package asks for OpenAPI definitions");
    }
    let mut generator = Command::new(cache.program("openapi-gen"));
    generator.envs(go(cache, &[]).get_envs().filter_map(|(key, value)| Some((key, value?))));
    generator.env("PATH", path_with_go(cache)?).current_dir(cache.at("gopath/src/k8s.io/kubernetes"));
    generator.args(["-O", "zz_generated.openapi", "-p", "k8s.io/kubernetes/pkg/generated/openapi"]);
    generator.args(["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt", "-i", &packages.join(",")]);
    // It lists upstream's known exceptions there; on standard output otherwise.
    run(generator.arg("-r").arg(cache.at("openapi-exceptions.txt")))
}

fn path_with_go(cache: &Cache) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(cache.at("goroot/bin")).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(all)?)
}
