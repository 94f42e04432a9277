//! The server's authority, asked of somebody who cannot be believed yet. Nothing secret is sent.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// More than any authority is long.
const LONGEST: u64 = 64 * 1024;

/// PEM that `GET /cacerts` answers. Waits for a server that is not up yet; `server` is `https://host:port`.
pub async fn authority(server: &str) -> Result<String> {
    loop {
        match tokio::time::timeout(PATIENCE, ask(server)).await {
            Ok(Ok(pem)) => return Ok(pem),
            Ok(Err(error)) if !error.is::<std::io::Error>() => return Err(error),
            Ok(Err(error)) => {
                tracing::warn!(error = format_args!("{error:#}"), server, "the server does not answer yet")
            }
            Err(_) => tracing::warn!(server, "the server does not answer yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn ask(server: &str) -> Result<String> {
    let address = server.trim_start_matches("https://");
    let address = if address.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
        address.to_owned()
    } else {
        format!("{address}:443")
    };
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no host"))?;
    let mut tls = serving::unverified(Arc::new(rustls::crypto::ring::default_provider()));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(&address).await?;
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
    let request = format!("GET /cacerts HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\naccept: text/plain\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A peer that closes without saying so has said all the same what it says.
    let _ = stream.take(LONGEST).read_to_end(&mut answer).await;
    body(&String::from_utf8_lossy(&answer))
        .with_context(|| format!("{server} does not tell its authority: is it a coxswain server?"))
}

/// The body of a successful answer. PEM is found wherever it stands in it.
fn body(answer: &str) -> Result<String> {
    let Some(head) = answer.lines().next() else {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    };
    if !head.contains(" 200 ") {
        bail!("it answers {head}");
    }
    let start = answer.find("-----BEGIN CERTIFICATE-----").context("there is no certificate in it")?;
    let end = answer.rfind("-----END CERTIFICATE-----").context("the certificate is cut off")?;
    Ok(format!("{}-----END CERTIFICATE-----\n", &answer[start..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_will_do() {
        let pem = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n";
        assert_eq!(body(&format!("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{pem}")).unwrap(), pem);
        assert!(body("HTTP/1.1 200 OK\r\n\r\nhello").is_err());
        assert!(body("HTTP/1.1 200 OK\r\n\r\n-----BEGIN CERTIFICATE-----").is_err());
        assert_eq!(
            body("HTTP/1.1 403 Forbidden\r\n\r\n").unwrap_err().to_string(),
            "it answers HTTP/1.1 403 Forbidden"
        );
        assert!(body("").unwrap_err().is::<std::io::Error>(), "tried again");
    }
}
