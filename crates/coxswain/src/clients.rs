//! API clients by identity: over the in-process transport, or the one identity that a machine has.

use apiserver::ApiServer;
use apiserver::http::inprocess::InProcess;
use apiserver::request::UserInfo;

/// Makes clients for the components of this process.
#[derive(Clone)]
pub struct InProcessClients {
    server: ApiServer,
}

impl InProcessClients {
    pub fn new(server: ApiServer) -> Self {
        InProcessClients { server }
    }
}

impl client::ClientFactory for InProcessClients {
    fn client_as(&self, user: &str, groups: &[&str]) -> kube::Client {
        let service = InProcess::new(self.server.clone(), UserInfo::new(user, groups));
        kube::Client::new(service, "default")
    }
}

/// An agent is its node, and nobody else: that is the only certificate it has.
pub struct NodeClient(pub kube::Client);

impl client::ClientFactory for NodeClient {
    fn client_as(&self, _user: &str, _groups: &[&str]) -> kube::Client {
        self.0.clone()
    }
}
