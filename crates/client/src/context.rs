//! What a component is started with.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::Informers;

/// Makes API clients by identity. In one process every component still is somebody: the API server authorises each.
pub trait ClientFactory: Send + Sync + 'static {
    /// A client that acts as `user` with `groups` (`system:authenticated` is added by the server).
    fn client_as(&self, user: &str, groups: &[&str]) -> kube::Client;
}

/// Handed to `run` of every component.
#[derive(Clone)]
pub struct Context {
    /// The component's own identity.
    pub client: kube::Client,
    /// Other identities, where a component has several (controllers act each as its own service account).
    pub clients: Arc<dyn ClientFactory>,
    /// Caches shared by all components of this process.
    pub informers: Informers,
    /// Cancelled when the process shuts down; `run` then returns after its work in hand.
    pub shutdown: CancellationToken,
}

impl Context {
    /// A client that acts as the service account `kube-system/<name>`, as upstream's controllers do.
    pub fn as_controller(&self, name: &str) -> kube::Client {
        let user = format!("system:serviceaccount:kube-system:{name}");
        self.clients.client_as(&user, &["system:serviceaccounts", "system:serviceaccounts:kube-system"])
    }
}
