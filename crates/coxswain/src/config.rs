//! Configuration: flags with the names k3s users know, and a file of the same keys.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::audit::AuditArgs;
use crate::authentication::AuthenticationArgs;
use crate::datastore::{Datastore, DatastoreArgs};
use crate::logging::LogFormat;
use crate::{host, pause, snapshot};

const DEFAULT_FILE: &str = "/etc/coxswain/config.yaml";

/// What every machine of a cluster is told.
#[derive(Args, Debug)]
struct HostArgs {
    /// File of these same keys (`data-dir: /srv/coxswain`); flags win [default: /etc/coxswain/config.yaml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where all state is kept
    #[arg(long, default_value = "/var/lib/coxswain")]
    data_dir: PathBuf,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Name of this node [default: the host's name]
    #[arg(long)]
    node_name: Option<String>,
    /// Address of this node [default: the source address of the default route]
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// Socket of the container runtime [default: start the installed containerd]
    #[arg(long)]
    container_runtime_endpoint: Option<String>,
    /// Setting of the kubelet under upstream's name, such as `max-pods=200`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    kubelet_arg: Vec<String>,
    /// Image of pod sandboxes; the default comes with this program
    #[arg(long, default_value = pause::IMAGE)]
    pause_image: String,
    /// Level, or filter by module: `info,apiserver=debug`
    #[arg(long, default_value = "info")]
    log_level: String,
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Args, Debug)]
#[command(args_override_self = true)]
pub struct ServerArgs {
    #[command(flatten)]
    host: HostArgs,
    #[arg(long, default_value_t = 6443)]
    https_listen_port: u16,
    /// Network of pods
    #[arg(long, default_value = "10.42.0.0/16")]
    cluster_cidr: String,
    /// Network of services
    #[arg(long, default_value = "10.43.0.0/16")]
    service_cidr: String,
    /// Address of the cluster's DNS [default: the tenth address of the service network]
    #[arg(long)]
    cluster_dns: Option<Ipv4Addr>,
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    #[command(flatten)]
    authentication: AuthenticationArgs,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    datastore: DatastoreArgs,
    /// Where to write the administrator's kubeconfig [default: <data-dir>/kubeconfig.yaml]
    #[arg(long)]
    write_kubeconfig: Option<PathBuf>,
    /// Run no node here: control plane only
    #[arg(long)]
    disable_agent: bool,
    /// Leave out a part: `controllers`, `scheduler`, `kube-proxy`, `dns`; may be repeated
    #[arg(long, value_delimiter = ',')]
    disable: Vec<String>,
    /// Secret with which agents join [default: made at first start; <data-dir>/node-token has it in the form that agents want]
    #[arg(long, env = "COXSWAIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    snapshots: snapshot::ScheduleArgs,
    /// How long events are kept after their last write, such as `30m`; 0 is for ever
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "DURATION")]
    event_ttl: Duration,
    /// Further name or address for the server's certificate; may be repeated
    #[arg(long, value_delimiter = ',')]
    tls_san: Vec<String>,
}

#[derive(Args, Debug)]
#[command(args_override_self = true)]
pub struct AgentArgs {
    #[command(flatten)]
    host: HostArgs,
    /// The server to join: `https://ADDRESS:6443`
    #[arg(long, env = "COXSWAIN_URL")]
    server: String,
    /// What the server's <data-dir>/node-token says; needed until this node has its certificate
    #[arg(long, env = "COXSWAIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that the token is read from
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

/// The parts that `--disable` knows.
const PARTS: [&str; 4] = ["controllers", "scheduler", "kube-proxy", "dns"];

/// One machine's own settings.
#[derive(Clone, Debug)]
pub struct Host {
    pub data_dir: PathBuf,
    pub bind_address: IpAddr,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub runtime_endpoint: Option<String>,
    /// Upstream's kubelet flags without their dashes, and their values.
    pub kubelet_args: Vec<(String, String)>,
    pub pause_image: String,
    pub log_level: String,
    pub log_format: LogFormat,
}

/// The networks and names that all of a cluster's machines agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub cluster_cidr: String,
    pub service_cidr: String,
    pub cluster_dns: Ipv4Addr,
    pub cluster_domain: String,
}

/// A server's settings, checked and complete.
#[derive(Clone, Debug)]
pub struct Server {
    pub host: Host,
    pub cluster: Cluster,
    pub port: u16,
    /// First address of the service network: the API server's own service.
    pub service_ip: Ipv4Addr,
    pub authentication: AuthenticationArgs,
    pub audit: AuditArgs,
    pub datastore: Datastore,
    pub kubeconfig: PathBuf,
    pub agent: bool,
    pub disabled: Vec<String>,
    pub token: Option<String>,
    pub tls_san: Vec<String>,
    /// Of the embedded store.
    pub snapshots: snapshot::Plan,
    /// How long events are kept; none is for ever.
    pub event_ttl: Option<Duration>,
}

/// An agent's settings, checked and complete.
#[derive(Clone, Debug)]
pub struct Agent {
    pub host: Host,
    /// `https://host:port`
    pub server: String,
    pub token: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    apimachinery::cron::duration(text)
}

impl Host {
    fn from_args(args: HostArgs) -> Result<Self> {
        Ok(Host {
            data_dir: std::path::absolute(&args.data_dir).context("--data-dir")?,
            bind_address: args.bind_address,
            node_name: args.node_name.unwrap_or_else(host::name).to_lowercase(),
            node_ip: args.node_ip.unwrap_or_else(host::address),
            runtime_endpoint: args.container_runtime_endpoint,
            kubelet_args: args.kubelet_arg.iter().map(|arg| key_and_value(arg)).collect::<Result<_>>()?,
            pause_image: args.pause_image,
            log_level: args.log_level,
            log_format: args.log_format,
        })
    }
}

impl Server {
    pub fn from_args(args: ServerArgs) -> Result<Self> {
        let (base, bits) = parse_cidr("--service-cidr", &args.service_cidr)?;
        parse_cidr("--cluster-cidr", &args.cluster_cidr)?;
        if !(8..=28).contains(&bits) {
            bail!("--service-cidr {}: the prefix must be between /8 and /28", args.service_cidr);
        }
        if let Some(part) = args.disable.iter().find(|p| !PARTS.contains(&p.as_str())) {
            bail!("--disable {part}: unknown part, there are {}", PARTS.join(", "));
        }
        args.authentication.check()?;
        args.audit.check()?;
        let datastore = args.datastore.into_datastore()?;
        let host = Host::from_args(args.host)?;
        Ok(Server {
            port: args.https_listen_port,
            cluster: Cluster {
                cluster_cidr: args.cluster_cidr,
                service_cidr: args.service_cidr,
                cluster_dns: args.cluster_dns.unwrap_or_else(|| Ipv4Addr::from(u32::from(base) + 10)),
                cluster_domain: args.cluster_domain,
            },
            service_ip: Ipv4Addr::from(u32::from(base) + 1),
            authentication: args.authentication,
            audit: args.audit,
            datastore,
            kubeconfig: args.write_kubeconfig.unwrap_or_else(|| host.data_dir.join("kubeconfig.yaml")),
            agent: !args.disable_agent,
            disabled: args.disable,
            token: args.token,
            tls_san: args.tls_san,
            snapshots: args.snapshots.into_plan(&host.data_dir)?,
            event_ttl: (!args.event_ttl.is_zero()).then_some(args.event_ttl),
            host,
        })
    }

    pub fn enabled(&self, part: &str) -> bool {
        !self.disabled.iter().any(|d| d == part)
    }
}

impl Agent {
    pub fn from_args(args: AgentArgs) -> Result<Self> {
        let server = args.server.trim_end_matches('/').to_owned();
        if !server.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.contains('/')) {
            bail!("--server {server}: not of the form https://ADDRESS:PORT");
        }
        let token = match (args.token, &args.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => {
                Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?)
            }
            (None, None) => None,
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        Ok(Agent { host: Host::from_args(args.host)?, server, token })
    }
}

fn key_and_value(argument: &str) -> Result<(String, String)> {
    let (key, value) =
        argument.split_once('=').with_context(|| format!("--kubelet-arg {argument}: not of the form key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Network address and prefix length; host bits must be zero.
fn parse_cidr(flag: &str, text: &str) -> Result<(Ipv4Addr, u32)> {
    let parsed =
        text.split_once('/').and_then(|(base, bits)| Some((base.parse::<Ipv4Addr>().ok()?, bits.parse::<u32>().ok()?)));
    match parsed {
        Some((base, bits)) if bits <= 32 && u32::from(base).checked_shl(bits).unwrap_or(0) == 0 => Ok((base, bits)),
        _ => bail!("{flag} {text}: not a network such as 10.43.0.0/16"),
    }
}

/// Puts the keys of the configuration file before the flags, so that flags win.
pub fn with_file(arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let known = match arguments.get(1).and_then(|a| a.to_str()) {
        Some("server" | "check") => ServerArgs::augment_args(clap::Command::new("server")),
        Some("agent") => AgentArgs::augment_args(clap::Command::new("agent")),
        _ => return Ok(arguments),
    };
    let given = file_flag(&arguments);
    let path = given.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(arguments),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut all: Vec<OsString> = arguments[..2].to_vec();
    all.extend(flags_of(&known, &path, &text)?.into_iter().map(OsString::from));
    all.extend_from_slice(&arguments[2..]);
    Ok(all)
}

fn file_flag(arguments: &[OsString]) -> Option<PathBuf> {
    let mut words = arguments.iter().filter_map(|a| a.to_str());
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().map(PathBuf::from);
        }
        if let Some(path) = word.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    None
}

fn flags_of(known: &clap::Command, path: &Path, text: &str) -> Result<Vec<String>> {
    let fail = |what: String| anyhow::anyhow!("{}: {what}", path.display());
    let decoded =
        apimachinery::schema::decode::from_yaml(text.as_bytes()).with_context(|| path.display().to_string())?;
    let map = match &decoded.value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(map) => map,
        _ => return Err(fail("must be a map of keys like the flags".to_owned())),
    };
    let mut flags = Vec::new();
    for (key, value) in map {
        let argument = known.get_arguments().find(|a| a.get_long() == Some(key) && key != "config");
        let argument = argument.ok_or_else(|| fail(format!("unknown key {key}")))?;
        let switch = !argument.get_action().takes_values();
        match value {
            Value::Null => {}
            Value::Bool(on) if switch => flags.extend(on.then(|| format!("--{key}"))),
            _ if switch => return Err(fail(format!("{key}: must be true or false"))),
            Value::Array(items) => {
                for item in items {
                    flags.push(format!("--{key}={}", scalar(item).map_err(|e| fail(format!("{key}: {e}")))?));
                }
            }
            other => flags.push(format!("--{key}={}", scalar(other).map_err(|e| fail(format!("{key}: {e}")))?)),
        }
    }
    Ok(flags)
}

fn scalar(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(_) => Err("must be a text: put it in quotes"),
        _ => Err("must be a text, a number or a list of these"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_keys_become_flags() {
        let text = "data-dir: /srv/x\nhttps-listen-port: 7443\ntls-san: [a, b]\ndisable-agent: true\n";
        let known = ServerArgs::augment_args(clap::Command::new("server"));
        let flags = flags_of(&known, Path::new("f"), text).unwrap();
        assert_eq!(
            flags,
            ["--data-dir=/srv/x", "--disable-agent", "--https-listen-port=7443", "--tls-san=a", "--tls-san=b"]
        );
        let refused = |text: &str| flags_of(&known, Path::new("f"), text).unwrap_err().to_string();
        assert_eq!(refused("- 1"), "f: must be a map of keys like the flags");
        assert_eq!(refused("data-dri: /x"), "f: unknown key data-dri");
        assert_eq!(refused("disable-agent: often"), "f: disable-agent: must be true or false");
        assert_eq!(refused("node-name: true"), "f: node-name: must be a text: put it in quotes");
    }

    #[test]
    fn agents_are_told_where_to() {
        let agent = |server: &str| {
            let words = ["agent", "--server", server, "--token", " t\n"];
            let command = AgentArgs::augment_args(clap::Command::new("agent"));
            let matches = command.try_get_matches_from(words).unwrap();
            Agent::from_args(clap::FromArgMatches::from_arg_matches(&matches).unwrap())
        };
        let good = agent("https://10.0.0.1:6443/").unwrap();
        assert_eq!((good.server.as_str(), good.token.as_deref()), ("https://10.0.0.1:6443", Some("t")));
        for bad in ["10.0.0.1:6443", "http://a", "https://", "https://a/b"] {
            assert!(agent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks() {
        assert!(parse_cidr("f", "10.43.0.0/16").is_ok());
        for bad in ["10.43.0.1/16", "10.43.0.0", "x/16", "10.0.0.0/33"] {
            assert!(parse_cidr("f", bad).is_err(), "{bad}");
        }
    }
}
