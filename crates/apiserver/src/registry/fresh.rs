//! What a request has to see of what other servers wrote: the rules of `resourceVersion`, where several servers share one data store.
//!
//! A write is decided by the newest state, or it would refuse what is right by now: a version that a client was told by another server,
//! an object that was made there, a name that was freed there. Which of several writes wins is decided by the store.

use apimachinery::status::Result;

use crate::server::{ApiServer, Call};

/// Returns when the store shows what the request may expect of it. At once where this server is the only one.
pub async fn wait(server: &ApiServer, call: &Call) -> Result<()> {
    if !call.row.stored {
        return Ok(());
    }
    let store = server.view.store();
    let reads = matches!(call.info.verb.as_str(), "get" | "list" | "watch");
    if reads && !expects_newest(call, store.revision()) {
        return Ok(());
    }
    store.barrier().await.map_err(crate::error::from_store)
}

/// Without a version a read shows the newest state, with `0` any; with another one at least that, which may have been told by a server
/// that is ahead of this one. A continued list goes on at the version that it began with.
fn expects_newest(call: &Call, shown: store::Revision) -> bool {
    if call.query.get("continue").is_some_and(|token| !token.is_empty()) {
        return false;
    }
    match call.query.get("resourceVersion").unwrap_or_default() {
        "" => true,
        version => version.parse::<store::Revision>().is_ok_and(|wanted| wanted > shown),
    }
}
