//! The in-process transport: a tower service over the same pipeline, for the components that live in this process.
//!
//! It skips sockets and TLS; the caller's identity is given at construction, and authorisation and admission apply as for anybody.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::{BoxError, Response};
use crate::request::UserInfo;
use crate::server::{ApiServer, Caller};

/// Requests of one identity. Cloning is cheap.
#[derive(Clone)]
pub struct InProcess {
    server: ApiServer,
    user: Arc<UserInfo>,
}

impl InProcess {
    pub fn new(server: ApiServer, mut user: UserInfo) -> Self {
        if !user.in_group("system:authenticated") {
            user.groups.push("system:authenticated".to_owned());
        }
        InProcess { server, user: Arc::new(user) }
    }
}

impl<B> tower::Service<http::Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let server = self.server.clone();
        let caller = Caller::Known(self.user.clone());
        Box::pin(async move { Ok(server.handle(request, caller).await) })
    }
}
