//! The servers that share a data store, so that the service `default/kubernetes` leads to all that live and to no other: upstream's
//! lease endpoint reconciler, with its keys. Each server writes its address again and again, to go away by itself soon after it stops;
//! whoever sees that the endpoints are not the addresses that there are sets them.

use std::collections::BTreeSet;
use std::time::Duration;

use apimachinery::status::Result;
use serde_json::json;
use store::{Durability, Op, Txn};
use tokio_util::sync::CancellationToken;

use crate::server::ApiServer;
use crate::startup;
use crate::view::{View, key};

const PREFIX: &str = "masterleases";
/// Upstream's interval and time to live.
const BEAT: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(15);

/// The servers that are known, and this one.
pub(crate) fn addresses(view: &View, own: Option<&str>) -> BTreeSet<String> {
    let known = view.list(PREFIX, "");
    let known = known.iter().filter_map(|entry| Some(entry.key.rsplit_once('/')?.1.to_owned()));
    known.chain(own.map(str::to_owned)).collect()
}

/// Tells others of this server until `shutdown`, and then that it is gone. All servers listen on the same port.
pub async fn keep(server: ApiServer, address: String, port: u16, shutdown: CancellationToken) {
    let lease = key(PREFIX, "", &address);
    // The form of upstream's, for tools that look at it.
    let value = json!({
        "kind": "Endpoints", "apiVersion": "v1", "metadata": {},
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"port": port, "protocol": "TCP"}]}],
    });
    let value = crate::object::encode(&value);
    loop {
        let put = Op::Put { key: lease.clone(), value: value.clone(), ttl: Some(LIFE) };
        if let Err(error) = write(&server, put).await {
            tracing::warn!(%error, "other servers are not told of this one yet");
        }
        settle(&server, port).await;
        if shutdown.run_until_cancelled(tokio::time::sleep(BEAT)).await.is_none() {
            break;
        }
    }
    if let Err(error) = write(&server, Op::Delete { key: lease }).await {
        tracing::debug!(%error, "this server's address goes when its time is over");
    }
    settle(&server, port).await;
}

async fn write(server: &ApiServer, op: Op) -> std::result::Result<(), store::Error> {
    let txn = Txn { ops: vec![op], durability: Durability::Relaxed, ..Txn::default() };
    server.view.store().commit(txn).await.map(|_| ())
}

async fn settle(server: &ApiServer, port: u16) {
    if let Err(error) = set_endpoints(server, port).await {
        tracing::debug!(%error, "endpoints of the API servers are not set, they will be looked at again");
    }
}

/// Makes the endpoints of `default/kubernetes` the servers that there are, unless they are already.
async fn set_endpoints(server: &ApiServer, port: u16) -> Result<()> {
    let addresses = addresses(&server.view, None);
    // The last one of all leaves its address, as it does where it is the only one.
    if addresses.is_empty() || shown(server) == addresses {
        return Ok(());
    }
    for object in startup::endpoints(&addresses, port) {
        startup::replace(server, &object).await?;
    }
    Ok(())
}

fn shown(server: &ApiServer) -> BTreeSet<String> {
    let Some(slice) = server.view.get("endpointslices", "default", "kubernetes") else { return BTreeSet::new() };
    let slice = slice.value.value();
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned)).collect()
}
