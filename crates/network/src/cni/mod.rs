//! The CNI plugin: how the container runtime has a pod connected to the network.
//!
//! The runtime executes us once per pod and operation, with the operation in the environment and the configuration on
//! standard input. Everything here is synchronous and does no more than that one operation: it is in the way of every
//! pod's start.
//!
//! A pod is connected by a veth pair, and routed: the host's end carries the gateway address and a route to the pod,
//! the pod has a /32 address and a default route. There is no bridge. So every packet passes the host's routing, where
//! service translation is undone, whatever `br_netfilter` is set to; nothing floods; a pod cannot pretend to be its
//! neighbour at layer 2.

pub mod attach;
pub mod config;
pub mod ipam;
pub mod rules;

#[cfg(test)]
mod tests;

use std::path::Path;

use ipnet::IpNet;
use serde_json::{Value, json};

use self::attach::Attachment;
use self::config::{Environment, NetworkConfig, version_at_least};
use self::ipam::{Owner, Pool, Record};
use self::rules::Networks;
use crate::{Error, Result};

/// Versions of the CNI specification that we speak.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const NEWEST_VERSION: &str = "1.1.0";

/// What the process is to print on standard output, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub stdout: String,
    pub exit_code: i32,
}

/// Carries out one call of the container runtime.
///
/// `environment` looks up an environment variable; `stdin` is all of standard input. Runs in the network namespace of the
/// host and leaves the thread there.
pub fn main(environment: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Outcome {
    let version = config::version_of(stdin);
    match call(&environment, stdin) {
        Ok(Some(result)) => Outcome { stdout: result.to_string(), exit_code: 0 },
        Ok(None) => Outcome { stdout: String::new(), exit_code: 0 },
        Err(failure) => {
            let message = failure.error.to_string();
            let report = json!({ "cniVersion": version, "code": failure.code, "msg": message });
            Outcome { stdout: report.to_string(), exit_code: 1 }
        }
    }
}

/// An error with the number that the CNI specification has for its class.
struct Failure {
    code: u32,
    error: Error,
}

const INCOMPATIBLE_VERSION: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const IO_FAILURE: u32 = 5;
const UNDECODABLE: u32 = 6;
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN: u32 = 11;
const NOT_AVAILABLE: u32 = 50;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Config(_) => INVALID_CONFIG,
            Error::PoolExhausted(_) => TRY_AGAIN,
            _ => IO_FAILURE,
        };
        Failure { code, error }
    }
}

fn call(environment: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Option<Value>, Failure> {
    let invalid = |error| Failure { code: INVALID_ENVIRONMENT, error };
    let command = environment("CNI_COMMAND").ok_or_else(|| {
        invalid(Error::Config("CNI_COMMAND is not set: this program is called by a container runtime".into()))
    })?;
    if command == "VERSION" {
        return Ok(Some(json!({ "cniVersion": NEWEST_VERSION, "supportedVersions": VERSIONS })));
    }
    let config = NetworkConfig::parse(stdin).map_err(|error| Failure { code: UNDECODABLE, error })?;
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        let error = Error::Config(format!("CNI version {:?} is not supported", config.cni_version));
        return Err(Failure { code: INCOMPATIBLE_VERSION, error });
    }
    let arguments = || Environment::read(environment).map_err(invalid);
    if config.plugin == "loopback" {
        // Only ADD touches the namespace; by the time of a repeated DEL it is gone and not named any more.
        return if command == "ADD" { loopback(&command, &config, arguments()?) } else { Ok(None) };
    }
    match command.as_str() {
        "ADD" => Ok(Some(add(&config, &arguments()?)?)),
        "DEL" => Ok(delete(&config, &Environment::read_for_delete(environment).map_err(invalid)?).map(|()| None)?),
        "CHECK" => Ok(check(&config, &arguments()?).map(|()| None)?),
        "GC" => Ok(collect_garbage(&config).map(|()| None)?),
        "STATUS" => status(&config).map(|()| None).map_err(|error| Failure { code: NOT_AVAILABLE, error }),
        _ => Err(invalid(Error::Config(format!("CNI_COMMAND {command:?} is unknown")))),
    }
}

fn add(config: &NetworkConfig, call: &Environment) -> Result<Value> {
    let owner = call.owner();
    let mut pool = Pool::lock(&config.data_dir)?;
    // A call that was killed half way may have left something.
    release(config, &mut pool, &owner)?;
    let ports = config.port_mappings();
    let allocate = |pool: &mut Pool| pool.allocate(&owner, &config.pod_cidrs, Path::new(&call.netns), ports.clone());
    let record = match allocate(&mut pool) {
        Err(Error::PoolExhausted(_)) => {
            release_dead(config, &mut pool)?;
            allocate(&mut pool)
        }
        other => other,
    }?;
    let attached = connect(config, call, &pool, &record);
    if attached.is_err()
        && let Err(error) = release(config, &mut pool, &owner)
    {
        tracing::warn!(%error, "cannot undo a failed attachment");
    }
    let attached = attached?;
    Ok(render_result(config, call, &record, &attached))
}

fn connect(config: &NetworkConfig, call: &Environment, pool: &Pool, record: &Record) -> Result<attach::Attached> {
    let attached = attach::attach(&attachment(config, call, record)?)?;
    rules::publish(config.networks(), pool, record)?;
    Ok(attached)
}

fn attachment(config: &NetworkConfig, call: &Environment, record: &Record) -> Result<Attachment> {
    Ok(Attachment {
        host_link: record.owner.host_link(),
        interface: call.interface.clone(),
        netns: call.netns.clone().into(),
        addresses: record.addresses.iter().map(|address| (*address, config.gateway_for(*address))).collect(),
        mtu: config.mtu,
    })
}

/// Undoes an attachment, in the reverse order, so that an interruption leaves the record and with it the way back here.
fn release(config: &NetworkConfig, pool: &mut Pool, owner: &Owner) -> Result<()> {
    attach::detach(&owner.host_link())?;
    for record in pool.records()?.into_iter().filter(|record| record.owner == *owner) {
        rules::withdraw(config.networks(), &record)?;
        pool.release(&record)?;
    }
    Ok(())
}

/// Releases what pods hold whose network namespace is gone: by a reboot, or because nobody called DEL.
fn release_dead(config: &NetworkConfig, pool: &mut Pool) -> Result<()> {
    let dead: Vec<Owner> = pool.records()?.into_iter().filter(Record::is_dead).map(|record| record.owner).collect();
    dead.iter().try_for_each(|owner| release(config, pool, owner))
}

fn delete(config: &NetworkConfig, call: &Environment) -> Result<()> {
    let mut pool = Pool::lock(&config.data_dir)?;
    release(config, &mut pool, &call.owner())
}

fn check(config: &NetworkConfig, call: &Environment) -> Result<()> {
    let pool = Pool::lock(&config.data_dir)?;
    let owner = call.owner();
    let record = pool.records()?.into_iter().find(|record| record.owner == owner);
    let record = record.ok_or_else(|| Error::CheckFailed(format!("{} has no address", owner.container)))?;
    attach::check(&attachment(config, call, &record)?)
}

/// At the node's start: releases what dead pods hold and writes the table `coxswain-pods` for those that live.
pub fn restore(network: &config::PodNetwork) -> Result<()> {
    let mut pool = Pool::lock(&network.data_dir)?;
    let (dead, alive): (Vec<Record>, Vec<Record>) = pool.records()?.into_iter().partition(Record::is_dead);
    for record in &dead {
        attach::detach(&record.owner.host_link())?;
        pool.release(record)?;
    }
    rules::write_table(Networks { pods: &network.pod_cidrs, cluster: &network.cluster_cidrs }, &alive)
}

/// Releases what belongs to none of the attachments that the runtime says are valid.
fn collect_garbage(config: &NetworkConfig) -> Result<()> {
    let valid = config.valid_attachments();
    let mut pool = Pool::lock(&config.data_dir)?;
    let stale: Vec<Owner> =
        pool.records()?.into_iter().map(|record| record.owner).filter(|owner| !valid.contains(owner)).collect();
    stale.iter().try_for_each(|owner| release(config, &mut pool, owner))
}

/// Whether an ADD would be served.
fn status(config: &NetworkConfig) -> Result<()> {
    if config.pod_cidrs.is_empty() {
        return Err(Error::Config("no pod network is configured".into()));
    }
    Pool::lock(&config.data_dir).map(drop)
}

/// The plugin `loopback`, which containerd calls for every pod besides the network's own.
fn loopback(command: &str, config: &NetworkConfig, call: Environment) -> Result<Option<Value>, Failure> {
    match command {
        "ADD" => {
            attach::set_loopback_up(Path::new(&call.netns))?;
            let mut ips = json!([{ "interface": 0, "address": "127.0.0.1/8" }]);
            if !version_at_least(&config.cni_version, (1, 0)) {
                ips[0]["version"] = json!("4");
            }
            let interfaces = json!([{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": call.netns }]);
            Ok(Some(json!({ "cniVersion": config.cni_version, "interfaces": interfaces, "ips": ips, "dns": {} })))
        }
        _ => Ok(None),
    }
}

fn render_result(config: &NetworkConfig, call: &Environment, record: &Record, attached: &attach::Attached) -> Value {
    let interfaces = json!([
        { "name": record.owner.host_link(), "mac": attached.host_mac },
        { "name": call.interface, "mac": attached.pod_mac, "sandbox": call.netns },
    ]);
    let mut ips = Vec::new();
    let mut routes = Vec::new();
    for address in &record.addresses {
        let gateway = config.gateway_for(*address);
        let mut ip = json!({ "address": IpNet::from(*address).to_string(), "gateway": gateway, "interface": 1 });
        if !version_at_least(&config.cni_version, (1, 0)) {
            ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
        }
        ips.push(ip);
        routes.push(json!({ "dst": if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": gateway }));
    }
    json!({ "cniVersion": config.cni_version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": {} })
}
