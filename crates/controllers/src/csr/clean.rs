//! Removes requests that are over (upstream's certificatesigningrequest-cleaner-controller). One timer a request.

use std::sync::Arc;
use std::time::Duration;

use client::{Context, Informer, Next, Queue, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::Api;

use super::{APPROVED, DENIED, IDENTITY, certificate, conditions};
use crate::error::Result;
use crate::write;

const NAME: &str = "certificatesigningrequest-cleaner-controller";
const WORKERS: usize = 1;
/// How long a request is kept after its certificate was issued, or after it was denied.
const DECIDED_SECONDS: i64 = 3600;
const PENDING_SECONDS: i64 = 24 * 3600;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let client = context.as_controller(IDENTITY);
    let requests = context.informers.of::<CertificateSigningRequest>();
    requests.synced().await;
    let queue = Queue::default();
    super::watch(&requests, &queue);
    let state = Arc::new((client, requests));
    run_workers(NAME, queue, WORKERS, context.shutdown, move |name| {
        let state = state.clone();
        async move { reconcile(&state.0, &state.1, &name).await }
    })
    .await;
}

async fn reconcile(client: &kube::Client, requests: &Informer<CertificateSigningRequest>, name: &str) -> Result<Next> {
    let Some(request) = requests.get("", name) else { return Ok(Next::Wait) };
    let Some(end) = end_of(&request) else { return Ok(Next::Wait) };
    let now = Timestamp::now();
    if end > now {
        let wait = Duration::try_from(end.duration_since(now)).unwrap_or_default();
        return Ok(Next::After(wait));
    }
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    client::found(api.delete(name, &write::delete_seen(&*request)).await)?;
    Ok(Next::Wait)
}

/// When a request is over: an hour after it was denied, or after the approval that a certificate came of (or when that
/// certificate has expired); a day after its creation if nobody decided. None: it stays.
fn end_of(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let conditions = conditions(request);
    if conditions.is_empty() {
        return later(request.metadata.creation_timestamp.as_ref(), PENDING_SECONDS);
    }
    let certificate = certificate(request);
    let ends = conditions.iter().filter(|condition| match condition.type_.as_str() {
        DENIED => true,
        APPROVED => !certificate.is_empty(),
        _ => false,
    });
    let mut ends: Vec<Timestamp> =
        ends.filter_map(|condition| later(condition.last_update_time.as_ref(), DECIDED_SECONDS)).collect();
    if conditions.iter().any(|condition| condition.type_ == APPROVED) {
        ends.extend(expiry(certificate));
    }
    ends.into_iter().min()
}

fn later(time: Option<&Time>, seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(time?.0.as_second().checked_add(seconds)?).ok()
}

/// When the first certificate of a PEM chain expires; none if it cannot be read.
fn expiry(pem: &[u8]) -> Option<Timestamp> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = block.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ago, now};
    use k8s_openapi::ByteString;

    fn request(condition: &str, seconds_ago: i64) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest::default();
        request.metadata.creation_timestamp = Some(ago(seconds_ago));
        if !condition.is_empty() {
            request = super::super::with_condition(&request, condition, "r", "m");
            let all = request.status.as_mut().and_then(|status| status.conditions.as_mut()).expect("conditions");
            all[0].last_update_time = Some(ago(seconds_ago));
        }
        request
    }

    fn seconds_left(request: &CertificateSigningRequest) -> Option<i64> {
        end_of(request).map(|end| end.as_second() - now().as_second())
    }

    fn certificate(expires_in: i64) -> String {
        let mut params = rcgen::CertificateParams::default();
        params.not_after = (std::time::UNIX_EPOCH
            + Duration::from_secs(u64::try_from(now().as_second() + expires_in).expect("positive")))
        .into();
        params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("a certificate").pem()
    }

    #[test]
    fn requests_end_by_age_and_state() {
        assert_eq!(seconds_left(&request("", 3600)), Some(23 * 3600));
        assert_eq!(seconds_left(&request(DENIED, 600)), Some(3000));
        assert_eq!(seconds_left(&request(APPROVED, 600)), None, "the signer has yet to come");
        assert_eq!(seconds_left(&request(super::super::FAILED, 600)), None);
        let mut issued = request(APPROVED, 600);
        let mut with = |expires_in| {
            let pem = certificate(expires_in).into_bytes();
            issued.status.get_or_insert_default().certificate = Some(ByteString(pem));
            seconds_left(&issued)
        };
        assert_eq!(with(100_000), Some(3000));
        assert_eq!(with(60), Some(60), "nobody needs the request of an expired certificate");
    }
}
