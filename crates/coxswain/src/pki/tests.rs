use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use rustls::pki_types::{CertificateDer, ServerName};

use super::*;

fn names(extra: &[&str]) -> Names {
    Names {
        node_name: "n".to_owned(),
        node_ips: vec![IpAddr::from([10, 0, 0, 7])],
        service_ip: IpAddr::from([10, 43, 0, 1]),
        cluster_domain: "cluster.local".to_owned(),
        extra: extra.iter().map(|s| (*s).to_owned()).collect(),
    }
}

#[test]
fn kept_while_good_and_renewed_for_a_new_name() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(dir.path(), &names(&[])).unwrap();
    let second = Pki::open(dir.path(), &names(&[])).unwrap();
    assert_eq!(first.api.pem(), second.api.pem());
    assert_eq!(first.service_account_key, second.service_account_key);
    let third = Pki::open(dir.path(), &names(&["api.example"])).unwrap();
    assert_ne!(first.api.pem(), third.api.pem());
    assert_eq!(first.server_ca.certificate, third.server_ca.certificate);
    assert_eq!(first.admin.pem(), third.admin.pem());
}

#[test]
fn keys_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    Pki::open(&tls, &names(&[])).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&tls), 0o700);
    for file in std::fs::read_dir(&tls).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
}

#[test]
fn a_certificate_whose_key_was_lost_to_a_crash_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(dir.path(), &names(&[])).unwrap();
    std::fs::copy(dir.path().join("kubelet.key"), dir.path().join("kube-apiserver.key")).unwrap();
    let second = Pki::open(dir.path(), &names(&[])).unwrap();
    assert_ne!(first.api.pem(), second.api.pem());
}

#[test]
fn an_authority_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    Pki::open(dir.path(), &names(&[])).unwrap();
    std::fs::remove_file(dir.path().join("server-ca.key")).unwrap();
    let error = Pki::open(dir.path(), &names(&[])).err().unwrap().to_string();
    assert!(error.ends_with("server-ca.key is missing: restore it from a backup"), "{error}");
}

/// The certificates that server and client show each other in one handshake.
fn handshake(pki: &Pki) -> (CertificateDer<'static>, CertificateDer<'static>) {
    let server = crate::control_plane::kubelet_tls(pki).unwrap();
    let client = crate::control_plane::kubelet_client_tls(pki).unwrap();
    let mut server = rustls::ServerConnection::new(server).unwrap();
    let mut client =
        rustls::ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    client.writer().flush().unwrap();
    let _ = client.reader().read(&mut []);
    let shown = |chain: Option<&[CertificateDer<'static>]>| chain.unwrap()[0].clone();
    (shown(client.peer_certificates()), shown(server.peer_certificates()))
}

#[tokio::test]
async fn renewed_in_use_before_they_expire() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Arc::new(Pki::with_leaf_life(dir.path(), &names(&[]), Duration::from_secs(4)).unwrap());
    let before = handshake(&pki);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(keep_renewed(pki.clone(), shutdown.clone(), move || {
        let _ = told.send(());
        Ok(())
    }));
    // Those made in one second are due in one, others in the next.
    loop {
        hears.recv().await.unwrap();
        let after = handshake(&pki);
        if before.0 != after.0 && before.1 != after.1 {
            break;
        }
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("admin.crt")).unwrap(), pki.admin.pem().certificate);
    shutdown.cancel();
    task.await.unwrap();
}

/// A certificate for an administrator that ended a minute ago, signed by `authority`.
fn expired(authority: &Authority) -> CertificateDer<'static> {
    let mut params = authority::params("late", Some("system:masters"), Duration::ZERO);
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let pem = authority.sign(&params, &KeyPair::generate().unwrap()).unwrap();
    rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn expiry_is_all_that_is_forgiven_within_tls() {
    use rustls::server::WebPkiClientVerifier;
    use rustls::server::danger::ClientCertVerifier as _;

    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = Pki::open(ours.path(), &names(&[])).unwrap().client_ca.clone();
    let theirs = Pki::open(theirs.path(), &names(&[])).unwrap().client_ca.clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let strict = WebPkiClientVerifier::builder_with_provider(ours.roots().unwrap(), provider).build().unwrap();
    let lenient = ExpiryLater(strict.clone());
    let now = rustls::pki_types::UnixTime::now();
    assert!(strict.verify_client_cert(&expired(&ours), &[], now).is_err());
    assert!(lenient.verify_client_cert(&expired(&ours), &[], now).is_ok());
    assert!(lenient.verify_client_cert(&expired(&theirs), &[], now).is_err());
}
