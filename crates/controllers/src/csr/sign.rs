//! Signs what was approved (upstream's certificatesigningrequest-signing-controller).

use std::sync::Arc;
use std::time::Duration;

use client::{Context, Gate, Informer, Next, Queue, Recorder, run_workers};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::Api;

use super::request::{Wanted, check, der_of};
use super::{APPROVED, CertificateSigner, DENIED, FAILED, IDENTITY, SigningRequest, certificate, has, with_condition};
use crate::error::{Error, Result};
use crate::write;

const NAME: &str = "certificatesigningrequest-signing-controller";
const WORKERS: usize = 2;
/// A shorter life would be over before clocks agree on its beginning.
const LIFE_MIN: Duration = Duration::from_secs(600);

/// Runs the controller until shutdown; without a signer it has nothing to do.
pub async fn run(context: Context, signer: Option<Arc<dyn CertificateSigner>>) {
    let Some(signer) = signer else { return };
    let requests = context.informers.of::<CertificateSigningRequest>();
    let client = context.as_controller(IDENTITY);
    let controller = Arc::new(Controller {
        recorder: Recorder::new(client.clone(), NAME, ""),
        client,
        gate: Gate::new(requests.clone()),
        requests,
        signer,
    });
    controller.requests.synced().await;
    let queue = Queue::default();
    super::watch(&controller.requests, &queue);
    run_workers(NAME, queue, WORKERS, context.shutdown, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    })
    .await;
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Not approved, done already, or another signer's.
    Leave,
    /// The signer never signs this; why.
    Fail(String),
    Sign {
        der: Vec<u8>,
        life: Option<Duration>,
    },
}

fn plan(request: &CertificateSigningRequest) -> Plan {
    let decided = has(request, APPROVED) && !has(request, DENIED) && !has(request, FAILED);
    if !decided || !certificate(request).is_empty() {
        return Plan::Leave;
    }
    let spec = &request.spec;
    let parsed = der_of(&spec.request.0).and_then(|der| Wanted::parse(&der).map(|wanted| (der, wanted)));
    let usages = spec.usages.as_deref().unwrap_or_default();
    // Another signer's request may be something that only that signer can read.
    match parsed {
        Ok((der, wanted)) => match check(&spec.signer_name, &wanted, usages) {
            None => Plan::Leave,
            Some(Err(why)) => Plan::Fail(why),
            Some(Ok(())) => Plan::Sign { der, life: spec.expiration_seconds.map(life) },
        },
        Err(why) if check(&spec.signer_name, &Wanted::default(), usages).is_some() => Plan::Fail(why),
        Err(_) => Plan::Leave,
    }
}

fn life(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default()).max(LIFE_MIN)
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    requests: Informer<CertificateSigningRequest>,
    gate: Gate<CertificateSigningRequest, String>,
    signer: Arc<dyn CertificateSigner>,
}

impl Controller {
    async fn reconcile(&self, name: &String) -> Result<Next> {
        self.gate.opened(name).await?;
        let Some(request) = self.requests.get("", name) else {
            self.gate.forget(name);
            return Ok(Next::Wait);
        };
        let changed = match plan(&request) {
            Plan::Leave => return Ok(Next::Wait),
            Plan::Fail(why) => with_condition(&request, FAILED, "SignerValidationFailure", &why),
            Plan::Sign { der, life } => self.signed(&request, &der, life)?,
        };
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        match api.replace_status(name, &write::post(), &changed).await {
            Ok(written) => self.gate.wrote(name, &written),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Wait)
    }

    /// A signer that cannot is asked again, with growing pauses.
    fn signed(
        &self,
        request: &CertificateSigningRequest,
        der: &[u8],
        life: Option<Duration>,
    ) -> Result<CertificateSigningRequest> {
        let spec = &request.spec;
        let usages = spec.usages.as_deref().unwrap_or_default();
        let asked = SigningRequest { signer_name: &spec.signer_name, der, usages, life };
        let pem = self.signer.sign(&asked).map_err(|why| {
            self.recorder.warning(request, "SigningFailed", why);
            Error::Waiting("a signer that can")
        })?;
        let mut changed = request.clone();
        changed.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{pem, usages};
    use super::super::{KUBELET_CLIENT, with_condition};
    use super::*;

    fn request(list: &str) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest::default();
        request.spec.signer_name = KUBELET_CLIENT.to_owned();
        request.spec.request = ByteString(pem("system:node:n1", "system:nodes", &[]).into_bytes());
        request.spec.usages = Some(usages(list));
        request
    }

    #[test]
    fn only_what_is_approved_and_not_yet_done_is_signed() {
        let pending = request("digital signature,client auth");
        assert_eq!(plan(&pending), Plan::Leave);
        let approved = with_condition(&pending, APPROVED, "r", "m");
        assert!(matches!(plan(&approved), Plan::Sign { life: None, .. }));
        assert_eq!(plan(&with_condition(&approved, FAILED, "r", "m")), Plan::Leave);
        let mut done = approved.clone();
        done.status.get_or_insert_default().certificate = Some(ByteString(b"PEM".to_vec()));
        assert_eq!(plan(&done), Plan::Leave);
        let mut foreign = approved;
        foreign.spec.signer_name = "example.com/other".to_owned();
        assert_eq!(plan(&foreign), Plan::Leave);
        foreign.spec.request = ByteString(b"what only they can read".to_vec());
        assert_eq!(plan(&foreign), Plan::Leave);
    }

    #[test]
    fn what_breaks_the_rules_fails() {
        let approved = with_condition(&request("server auth"), APPROVED, "r", "m");
        let Plan::Fail(why) = plan(&approved) else { panic!("must fail") };
        assert!(why.starts_with("usages did not match"), "{why}");
    }

    #[test]
    fn ten_minutes_at_least() {
        let mut approved = with_condition(&request("digital signature,client auth"), APPROVED, "r", "m");
        for (asked, given) in [(1, 600), (-5, 600), (3600, 3600)] {
            approved.spec.expiration_seconds = Some(asked);
            let Plan::Sign { life, .. } = plan(&approved) else { panic!("must be signed") };
            assert_eq!(life, Some(Duration::from_secs(given)));
        }
    }
}
