//! Where a request carries its bearer token: in `Authorization`, or as a subprotocol of a WebSocket, since browsers can set no header
//! of those (upstream's `authentication/request/{bearertoken,websocket}`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};

const PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of a request, if it has one. What is malformed counts as none: the request goes on as what else it is.
pub fn bearer_token(headers: &HeaderMap) -> Option<String> {
    of_header(headers).map(str::to_owned).or_else(|| of_protocols(headers))
}

fn of_header(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// There must be a second protocol, which the server can agree to.
fn of_protocols(headers: &HeaderMap) -> Option<String> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offers = offers.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim);
    let (tokens, others): (Vec<&str>, Vec<&str>) = offers.partition(|offer| offer.starts_with(PROTOCOL));
    let [token] = tokens.as_slice() else { return None };
    if others.is_empty() {
        return None;
    }
    let token = URL_SAFE_NO_PAD.decode(&token[PROTOCOL.len()..]).ok()?;
    String::from_utf8(token).ok().filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_both_places() {
        let found = |name: &'static str, value: &str| {
            let headers = [(header::HeaderName::from_static(name), value.parse().unwrap())].into_iter().collect();
            bearer_token(&headers)
        };
        let secret = URL_SAFE_NO_PAD.encode("s.e-cret");
        for (name, value, expected) in [
            ("authorization", "Bearer abc".to_owned(), Some("abc")),
            ("authorization", "bearer  abc ".to_owned(), Some("abc")),
            ("authorization", "Basic abc".to_owned(), None),
            ("authorization", "Bearer".to_owned(), None),
            ("sec-websocket-protocol", format!("{PROTOCOL}{secret}, v5.channel.k8s.io"), Some("s.e-cret")),
            ("sec-websocket-protocol", format!("{PROTOCOL}{secret}"), None),
            ("sec-websocket-protocol", format!("{PROTOCOL}{secret},{PROTOCOL}{secret},x"), None),
            ("sec-websocket-protocol", format!("{PROTOCOL}???,x"), None),
        ] {
            assert_eq!(found(name, &value).as_deref(), expected, "{value}");
        }
    }
}
