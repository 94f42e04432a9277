//! Who may come in: upstream's flags of kube-apiserver about tokens, and the authenticator that they make.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use apiserver::authn::{Authenticator, SigningKey, TokenSigner, VerifyingKey, token_file};
use apiserver::request::UserInfo;
use apiserver::view::View;
use clap::{ArgAction, Args};

#[derive(Args, Clone, Debug)]
pub struct AuthenticationArgs {
    /// Issuer of service account tokens; the first one of several signs, tokens of all are taken
    /// [default: https://kubernetes.default.svc.<cluster-domain>]
    #[arg(long, value_name = "URL")]
    service_account_issuer: Vec<String>,
    /// Where others find the keys of service account tokens, if not below the issuer
    #[arg(long, value_name = "URL")]
    service_account_jwks_uri: Option<String>,
    /// PEM file of keys whose service account tokens are taken besides those of the cluster's own key; may be repeated
    #[arg(long, value_name = "FILE")]
    service_account_key_file: Vec<PathBuf>,
    /// Longest life of a service account token, such as `48h`; longer wishes are cut short
    #[arg(long, value_name = "DURATION", value_parser = apimachinery::cron::duration)]
    service_account_max_token_expiration: Option<Duration>,
    /// Whether tokens in pods live a year beyond their time, for programs that never read them again
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    service_account_extend_token_expiration: bool,
    /// Audience of tokens that means this API; may be repeated [default: the issuers]
    #[arg(long, value_delimiter = ',')]
    api_audiences: Vec<String>,
    /// File of bearer tokens: `token,user,uid,"group1,group2"`
    #[arg(long, value_name = "FILE")]
    token_auth_file: Option<PathBuf>,
    /// Take Secrets of type bootstrap.kubernetes.io/token in kube-system as credentials
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    enable_bootstrap_token_auth: bool,
}

/// Upstream's bounds of `--service-account-max-token-expiration`.
const MAX_EXPIRATION: std::ops::RangeInclusive<u64> = 3600..=1 << 32;

impl AuthenticationArgs {
    /// What cannot be meant, in upstream's words.
    pub fn check(&self) -> Result<()> {
        if let Some(max) = self.service_account_max_token_expiration
            && !MAX_EXPIRATION.contains(&max.as_secs())
        {
            bail!("the service-account-max-token-expiration must be between 1 hour and 2^32 seconds");
        }
        if let Some(uri) = &self.service_account_jwks_uri
            && !uri.starts_with("https://")
        {
            bail!("service-account-jwks-uri requires https scheme, parsed as: {uri}");
        }
        Ok(())
    }

    /// The issuer of the cluster's tokens; `default_issuer` is its name unless the flags have one, `key` its key in PKCS#8.
    pub fn signer(&self, default_issuer: String, key: &[u8]) -> Result<TokenSigner> {
        let key = SigningKey::from_pkcs8(key).context("service account key")?;
        let mut issuers = self.service_account_issuer.iter().cloned();
        let issuer = issuers.next().unwrap_or(default_issuer);
        let mut former = Vec::new();
        for file in &self.service_account_key_file {
            let pem = std::fs::read(file).with_context(|| format!("--service-account-key-file {}", file.display()))?;
            let keys = VerifyingKey::all_from_pem(&pem);
            former.extend(keys.with_context(|| format!("--service-account-key-file {}", file.display()))?);
        }
        let mut audiences = self.api_audiences.clone();
        if audiences.is_empty() {
            audiences = self.service_account_issuer.clone();
        }
        if audiences.is_empty() {
            audiences = vec![issuer.clone()];
        }
        let mut signer = TokenSigner::new(issuer, key)
            .with_former_issuers(issuers)
            .with_former_keys(former)
            .with_audiences(audiences)
            .with_extension(self.service_account_extend_token_expiration);
        if let Some(uri) = &self.service_account_jwks_uri {
            signer = signer.with_jwks_uri(uri.clone());
        }
        if let Some(max) = self.service_account_max_token_expiration {
            signer = signer.with_max_seconds(i64::try_from(max.as_secs())?);
        }
        Ok(signer)
    }

    /// `joining` is the token with which agents join, and whose it is.
    pub fn authenticator(
        &self,
        view: View,
        signer: Arc<TokenSigner>,
        joining: (String, UserInfo),
    ) -> Result<Authenticator> {
        let mut fixed = Vec::new();
        if let Some(file) = &self.token_auth_file {
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("--token-auth-file {}", file.display()))?;
            fixed = token_file::parse(&text)
                .map_err(|why| anyhow::anyhow!("--token-auth-file {}: {why}", file.display()))?;
        }
        // Last, so that no file takes the cluster's own token for somebody else.
        fixed.push(joining);
        Ok(Authenticator::new(view, signer, fixed).with_bootstrap_tokens(self.enable_bootstrap_token_auth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches as _;

    fn args(words: &[&str]) -> AuthenticationArgs {
        let command = AuthenticationArgs::augment_args(clap::Command::new("server"));
        let matches = command.try_get_matches_from(std::iter::once(&"server").chain(words)).unwrap();
        AuthenticationArgs::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn flags_make_the_issuer() {
        let key = SigningKey::generate().unwrap();
        let signer = |words: &[&str]| args(words).signer("https://default".to_owned(), &key).unwrap();
        assert_eq!(signer(&[]).audiences(), ["https://default"]);
        let two = signer(&["--service-account-issuer=https://a", "--service-account-issuer=https://b"]);
        assert_eq!(
            (two.issuer(), two.audiences()),
            ("https://a", &["https://a".to_owned(), "https://b".to_owned()][..])
        );
        assert_eq!(signer(&["--api-audiences=x,y"]).audiences(), ["x", "y"]);
        assert!(args(&["--service-account-key-file=/does/not/exist"]).signer(String::new(), &key).is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(args(&["--service-account-max-token-expiration=48h"]).check().is_ok());
        assert!(args(&["--service-account-max-token-expiration=10m"]).check().is_err());
        assert!(args(&["--service-account-jwks-uri=http://a"]).check().is_err());
        assert!(args(&["--enable-bootstrap-token-auth"]).enable_bootstrap_token_auth);
        assert!(!args(&["--service-account-extend-token-expiration=false"]).service_account_extend_token_expiration);
    }
}
