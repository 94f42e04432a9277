//! API clients by identity, over the in-process transport.

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
