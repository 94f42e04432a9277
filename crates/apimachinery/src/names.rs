//! Well-formed names: upstream's `k8s.io/apimachinery/pkg/util/validation` and `api/validate/content`.
//!
//! Each check answers with the messages that upstream gives, word for word (clients show and tests grep them); no message means
//! that the value is well-formed. The expressions quoted in messages are matched by hand, byte by byte.
//!
//! Must not know: which field of which kind a rule guards; that is the schema's and the strategies' affair.

use std::net::{IpAddr, Ipv6Addr};

use crate::field::{self, Path};

/// Longest DNS label, label value and name part of a label key, in bytes.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain, in bytes.
pub const SUBDOMAIN_MAX: usize = 253;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1123_SUBDOMAIN_UNDERSCORE: &str = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const WILDCARD_SUBDOMAIN: &str = r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035_LABEL: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";

const DNS1123_LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const SUBDOMAIN_UNDERSCORE_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
const SUBDOMAIN_CASELESS_RULE: &str = "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const WILDCARD_RULE: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
const DNS1035_LABEL_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const LABEL_KEY_RULE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// `must be no more than {max} characters`: the wording of DNS names, keys and ports (the limit is in bytes all the same).
pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// The wording that label keys and values use for the same failure.
fn max_bytes_error(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// A rule, its examples and its expression, as upstream's `RegexError`.
pub fn regex_error(rule: &str, expression: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{rule} (regex used for validation is '{expression}')");
    }
    let quoted: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{rule} (e.g. {}regex used for validation is '{expression}')", quoted.join(" or "))
}

/// `must be between {min} and {max}, inclusive`.
pub fn range_error(min: i64, max: i64) -> String {
    format!("must be between {min} and {max}, inclusive")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Starts with `first`, ends with `last`, `middle` between; at least one byte, which must then satisfy both.
fn bounded(value: &str, first: fn(u8) -> bool, middle: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    let (Some(&head), Some(&tail)) = (bytes.first(), bytes.last()) else { return false };
    first(head) && (bytes.len() == 1 || last(tail)) && bytes.iter().all(|&b| middle(b))
}

fn is_label(value: &str) -> bool {
    bounded(value, lower_alnum, |b| lower_alnum(b) || b == b'-', lower_alnum)
}

fn is_subdomain(value: &str) -> bool {
    value.split('.').all(is_label)
}

fn is_label_name(value: &str) -> bool {
    let middle = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    bounded(value, |b| b.is_ascii_alphanumeric(), middle, |b| b.is_ascii_alphanumeric())
}

fn all(value: &str, allowed: fn(u8) -> bool) -> bool {
    !value.is_empty() && value.bytes().all(allowed)
}

/// The messages of a length limit and a pattern.
fn check(value: &str, max: usize, fits: bool, failure: impl FnOnce() -> String) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > max {
        messages.push(max_len_error(max));
    }
    if !fits {
        messages.push(failure());
    }
    messages
}

/// `IsDNS1123Label`: names of namespaces, containers, volumes.
pub fn dns1123_label(value: &str) -> Vec<String> {
    check(value, LABEL_MAX, is_label(value), || {
        if is_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            regex_error(DNS1123_LABEL_RULE, DNS1123_LABEL, &["my-name", "123-abc"])
        }
    })
}

/// `IsDNS1123Subdomain`: names of most kinds.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    check(value, SUBDOMAIN_MAX, is_subdomain(value), || {
        regex_error(DNS1123_SUBDOMAIN_RULE, DNS1123_SUBDOMAIN, &["example.com"])
    })
}

/// `IsDNS1123SubdomainCaseless`: names of CSI and DRA drivers.
pub fn dns1123_subdomain_caseless(value: &str) -> Vec<String> {
    check(value, SUBDOMAIN_MAX, is_subdomain(&value.to_ascii_lowercase()), || {
        regex_error(SUBDOMAIN_CASELESS_RULE, DNS1123_SUBDOMAIN, &["Example.com"])
    })
}

/// `IsDNS1123SubdomainWithUnderscore`: DNS search domains.
pub fn dns1123_subdomain_with_underscore(value: &str) -> Vec<String> {
    let fits = value.split('.').all(|label| {
        let label = label.strip_prefix('_').unwrap_or(label);
        bounded(label, lower_alnum, |b| lower_alnum(b) || matches!(b, b'-' | b'_'), lower_alnum)
    });
    check(value, SUBDOMAIN_MAX, fits, || {
        regex_error(SUBDOMAIN_UNDERSCORE_RULE, DNS1123_SUBDOMAIN_UNDERSCORE, &["example.com"])
    })
}

/// `IsWildcardDNS1123Subdomain`: wildcard hosts of Ingress.
pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    check(value, SUBDOMAIN_MAX, value.strip_prefix("*.").is_some_and(is_subdomain), || {
        regex_error(WILDCARD_RULE, WILDCARD_SUBDOMAIN, &["*.example.com"])
    })
}

/// `IsDNS1035Label`: names of Services.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let fits = bounded(value, |b| b.is_ascii_lowercase(), |b| lower_alnum(b) || b == b'-', lower_alnum);
    check(value, LABEL_MAX, fits, || regex_error(DNS1035_LABEL_RULE, DNS1035_LABEL, &["my-name", "abc-123"]))
}

/// `IsQualifiedName` (also `IsLabelKey`): an optional DNS prefix, a slash, a name of at most 63 bytes.
pub fn qualified_name(value: &str) -> Vec<String> {
    let failure = || regex_error(LABEL_KEY_RULE, LABEL_KEY, &["MyName", "my.name", "123-abc"]);
    let mut messages = Vec::new();
    let name = match value.split_once('/') {
        None => value,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                failure()
            )];
        }
        Some(("", name)) => {
            messages.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            if prefix.len() > SUBDOMAIN_MAX {
                messages.push(format!("prefix part {}", max_bytes_error(SUBDOMAIN_MAX)));
            }
            if !is_subdomain(prefix) {
                let failure = regex_error(DNS1123_SUBDOMAIN_RULE, DNS1123_SUBDOMAIN, &["example.com"]);
                messages.push(format!("prefix part {failure}"));
            }
            name
        }
    };
    if name.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        messages.push(format!("name part {}", max_bytes_error(LABEL_MAX)));
    }
    if !is_label_name(name) {
        messages.push(format!("name part {}", failure()));
    }
    messages
}

/// `IsValidLabelValue`: empty, or at most 63 bytes.
pub fn label_value(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > LABEL_MAX {
        messages.push(max_bytes_error(LABEL_MAX));
    }
    if !value.is_empty() && !is_label_name(value) {
        messages.push(regex_error(LABEL_VALUE_RULE, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    messages
}

/// `IsCIdentifier`.
pub fn c_identifier(value: &str) -> Vec<String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if all(value, word) && !value.as_bytes()[0].is_ascii_digit() {
        return Vec::new();
    }
    let rule = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    vec![regex_error(rule, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

/// `IsConfigMapKey`: keys of ConfigMaps and Secrets.
pub fn config_map_key(value: &str) -> Vec<String> {
    let fits = all(value, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    let mut messages = check(value, SUBDOMAIN_MAX, fits, || {
        let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        regex_error(rule, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"])
    });
    messages.extend(parent_directory(value));
    messages
}

/// `IsEnvVarName`: the strict form.
pub fn env_var_name(value: &str) -> Vec<String> {
    let fits = all(value, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && !value.as_bytes()[0].is_ascii_digit();
    let mut messages = check(value, usize::MAX, fits, || {
        let rule = "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit";
        regex_error(rule, "[-._a-zA-Z][-._a-zA-Z0-9]*", &["my.env-name", "MY_ENV.NAME", "MyEnvName1"])
    });
    messages.extend(parent_directory(value));
    messages
}

/// `IsRelaxedEnvVarName`: printable ASCII without `=`; what pods are checked against.
pub fn relaxed_env_var_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if value.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=') {
        return Vec::new();
    }
    let rule = "a valid environment variable name must consist only of printable ASCII characters other than '='";
    vec![rule.to_owned()]
}

fn parent_directory(value: &str) -> Option<String> {
    match value {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if value.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// `IsHTTPHeaderName`.
pub fn http_header_name(value: &str) -> Vec<String> {
    if all(value, |b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let rule = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(rule, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// `IsValidPercent`: `25%`.
pub fn percent(value: &str) -> Vec<String> {
    if value.strip_suffix('%').is_some_and(|digits| all(digits, |b| b.is_ascii_digit())) {
        return Vec::new();
    }
    let rule = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_error(rule, "[0-9]+%", &["1%", "93%"])]
}

/// `IsValidPortName`: an IANA service name.
pub fn port_name(value: &str) -> Vec<String> {
    const MAX: usize = 15;
    let mut messages = Vec::new();
    let mut need = |fine: bool, message: &str| {
        if !fine {
            messages.push(message.to_owned());
        }
    };
    need(value.len() <= MAX, &max_len_error(MAX));
    need(
        all(value, |b| lower_alnum(b) || b == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    need(value.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    need(!value.contains("--"), "must not contain consecutive hyphens");
    need(!value.starts_with('-') && !value.ends_with('-'), "must not begin or end with a hyphen");
    messages
}

/// `IsValidPortNum`.
pub fn port_number(value: i64) -> Vec<String> {
    in_range(value, 1, 65535)
}

/// `IsInRange`, both ends included.
pub fn in_range(value: i64, min: i64, max: i64) -> Vec<String> {
    if (min..=max).contains(&value) { Vec::new() } else { vec![range_error(min, max)] }
}

/// `IsValidUserID` and `IsValidGroupID`.
pub fn user_id(value: i64) -> Vec<String> {
    in_range(value, 0, i64::from(i32::MAX))
}

/// `IsFullyQualifiedName`: a subdomain of at least three segments (names of API services' groups, finalizers, signers).
pub fn fully_qualified_name(path: &Path, name: &str) -> field::ErrorList {
    domain(path, name, name, 3)
}

/// `IsFullyQualifiedDomainName`: at least two segments; one trailing dot is allowed.
pub fn fully_qualified_domain_name(path: &Path, name: &str) -> field::ErrorList {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let errors = domain(path, name, bare, 2);
    if !errors.is_empty() {
        return errors;
    }
    let first_bad = bare.split('.').find_map(|label| {
        let messages = dns1123_label(label);
        (!messages.is_empty()).then(|| field::Error::invalid(path, &label.into(), &messages.join(",")))
    });
    first_bad.into_iter().collect()
}

fn domain(path: &Path, given: &str, name: &str, segments: usize) -> field::ErrorList {
    if given.is_empty() {
        return vec![field::Error::required(path, "")];
    }
    let messages = dns1123_subdomain(name);
    if !messages.is_empty() {
        return vec![field::Error::invalid(path, &name.into(), &messages.join(","))];
    }
    if name.split('.').count() < segments {
        let number = if segments == 3 { "three" } else { "two" };
        let detail = format!("should be a domain with at least {number} segments separated by dots");
        return vec![field::Error::invalid(path, &name.into(), &detail)];
    }
    Vec::new()
}

/// `IsDomainPrefixedPath`: `acme.io/some/path`.
pub fn domain_prefixed_path(path: &Path, value: &str) -> field::ErrorList {
    if value.is_empty() {
        return vec![field::Error::required(path, "")];
    }
    let (host, rest) = match value.split_once('/') {
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => (host, rest),
        _ => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            return vec![field::Error::invalid(path, &value.into(), detail)];
        }
    };
    let mut errors: field::ErrorList =
        dns1123_subdomain(host).iter().map(|m| field::Error::invalid(path, &host.into(), m)).collect();
    if !all(rest, |b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        let detail = regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]);
        errors.push(field::Error::invalid(path, &rest.into(), &detail));
    }
    errors
}

/// An address as upstream's `ParseIPSloppy` reads it: leading zeros in IPv4 octets are skipped.
pub fn parse_ip_sloppy(value: &str) -> Option<IpAddr> {
    if let Ok(address) = value.parse() {
        return Some(address);
    }
    let split = value.rfind(':').map_or(0, |i| i + 1);
    let (head, octets) = value.split_at(split);
    if !octets.contains('.') {
        return None;
    }
    let stripped: Vec<&str> = octets.split('.').map(without_leading_zeros).collect();
    format!("{head}{}", stripped.join(".")).parse().ok()
}

fn without_leading_zeros(digits: &str) -> &str {
    let rest = digits.trim_start_matches('0');
    if rest.is_empty() && !digits.is_empty() { "0" } else { rest }
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// `IsValidIPForLegacyField`: fields older than strict checks (`status.podIP`, `externalIPs`, …).
pub fn ip_for_legacy_field(value: &str, strict: bool) -> Vec<String> {
    let Some(address) = parse_ip_sloppy(value) else {
        return vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()];
    };
    let mut messages = Vec::new();
    if strict && value.parse::<IpAddr>().is_err() {
        messages.push("must not have leading 0s".to_owned());
    } else if strict && is_mapped(address) {
        messages.push("must not be an IPv4-mapped IPv6 address".to_owned());
    }
    messages
}

/// `IsValidIP`: strict and in canonical form.
pub fn ip(value: &str) -> Vec<String> {
    let messages = ip_for_legacy_field(value, true);
    match parse_ip_sloppy(value).map(|address| address.to_string()) {
        Some(canonical) if messages.is_empty() && canonical != value => {
            vec![format!("must be in canonical form ({canonical:?})")]
        }
        _ => messages,
    }
}

/// An address and a prefix length, as upstream's `ParseCIDRSloppy` reads them.
pub fn parse_cidr_sloppy(value: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = value.split_once('/')?;
    let address = parse_ip_sloppy(address)?;
    if !all(length, |b| b.is_ascii_digit()) {
        return None;
    }
    let length: u8 = without_leading_zeros(length).parse().ok()?;
    (length <= bits(address)).then_some((address, length))
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all bits beyond `length` cleared.
pub fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// `IsValidCIDRForLegacyField`.
pub fn cidr_for_legacy_field(value: &str, strict: bool) -> Vec<String> {
    let Some((address, length)) = parse_cidr_sloppy(value) else {
        return vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()];
    };
    if !strict {
        return Vec::new();
    }
    let (given, digits) = value.split_once('/').unwrap_or((value, ""));
    let message = if given.parse::<IpAddr>().is_err() || digits != length.to_string() {
        "must not have leading 0s in IP or prefix length"
    } else if is_mapped(address) {
        "must not have an IPv4-mapped IPv6 address"
    } else if masked(address, length) != address {
        "must not have bits set beyond the prefix length"
    } else {
        return Vec::new();
    };
    vec![message.to_owned()]
}

/// `IsValidCIDR`: strict and in canonical form.
pub fn cidr(value: &str) -> Vec<String> {
    let messages = cidr_for_legacy_field(value, true);
    match parse_cidr_sloppy(value) {
        Some((address, length)) if messages.is_empty() && format!("{address}/{length}") != value => {
            vec![format!("must be in canonical form (\"{address}/{length}\")")]
        }
        _ => messages,
    }
}

/// `IsValidInterfaceAddress`: `192.168.1.5/24`, in canonical form.
pub fn interface_address(value: &str) -> Vec<String> {
    let Some((address, length)) = parse_cidr_sloppy(value) else {
        return vec!["must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)".to_owned()];
    };
    let canonical = match address {
        IpAddr::V6(v6) if length >= 96 && v6.to_ipv4_mapped().is_some() => {
            format!("{}/{}", address.to_canonical(), length - 96)
        }
        _ => format!("{address}/{length}"),
    };
    if value == canonical { Vec::new() } else { vec![format!("must be in canonical form ({canonical:?})")] }
}

/// `IsValidPathSegmentName`: fit to be one segment of a URL path (names of RBAC objects and custom kinds of old).
pub fn path_segment_name(name: &str) -> Vec<String> {
    match name {
        "." | ".." => vec![format!("may not be '{name}'")],
        _ => path_segment_prefix(name),
    }
}

/// `IsValidPathSegmentPrefix`: fit to begin such a segment.
pub fn path_segment_prefix(name: &str) -> Vec<String> {
    ['/', '%'].iter().filter(|&&c| name.contains(c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A `generateName` as the name checks see it: upstream's `maskTrailingDash`, since a suffix will follow the dash.
pub fn mask_trailing_dash(prefix: &str) -> String {
    let Some(head) = prefix.strip_suffix('-').filter(|head| !head.is_empty()) else { return prefix.to_owned() };
    let mut chars = head.chars();
    chars.next_back();
    format!("{}a", chars.as_str())
}

/// Letters of generated names: no vowels, and nothing that is mistaken for one.
const SUFFIX_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Letters that the server appends to `generateName`.
pub const SUFFIX_LENGTH: usize = 5;

/// `length` letters drawn from `random`, at most 13 of them well mixed (27¹³ < 2⁶⁴).
pub fn random_suffix(mut random: u64, length: usize) -> String {
    let mut letters = String::with_capacity(length);
    for _ in 0..length {
        let index = usize::try_from(random % 27).expect("less than 27");
        letters.push(char::from(SUFFIX_LETTERS[index]));
        random /= 27;
    }
    letters
}

/// The name made from a `generateName`: cut to 58 bytes, and five random letters.
pub fn generate_name(base: &str, random: u64) -> String {
    let base = &base[..base.floor_char_boundary(LABEL_MAX - SUFFIX_LENGTH)];
    format!("{base}{}", random_suffix(random, SUFFIX_LENGTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine(check: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for value in good {
            assert_eq!(check(value), Vec::<String>::new(), "{value:?}");
        }
        for value in bad {
            assert_ne!(check(value), Vec::<String>::new(), "{value:?}");
        }
    }

    #[test]
    fn accepts_and_rejects() {
        fine(dns1123_label, &["a", "0", "a-b", "0--1"], &["", "-a", "a-", "A", "a.b", "a_b", "é", "a\n"]);
        fine(dns1123_subdomain, &["a", "a.b", "0.a-b.c"], &["", ".", "a.", ".a", "a..b", "a.-b", "A.b", "a/b"]);
        fine(dns1123_subdomain_caseless, &["A.b"], &["A_b", ""]);
        fine(dns1123_subdomain_with_underscore, &["_sip._tcp.x", "a_b"], &["__a", "a_", "_"]);
        fine(wildcard_dns1123_subdomain, &["*.a", "*.a.b"], &["*", "*.", "*.*.a", "a.*.b", "*a.b"]);
        fine(dns1035_label, &["a", "a-1"], &["1a", "", "a-", "a.b"]);
        fine(qualified_name, &["a", "A_b.c", "x.io/a", "1/1"], &["", "/a", "a/", "a/b/c", "X/a", "_a", "x.io/-"]);
        fine(label_value, &["", "a", "A.b_c-1"], &["-", "a-", " ", "a b"]);
        fine(c_identifier, &["_", "a1"], &["", "1a", "a-b"]);
        fine(config_map_key, &["a", "-", ".a", "A_b"], &["", ".", "..", "..a", "a/b"]);
        fine(env_var_name, &["A", "_a", "a.b-c"], &["", "1a", "..", "a=b"]);
        fine(relaxed_env_var_name, &["1 a#"], &["", "a=b", "é", "a\t"]);
        fine(http_header_name, &["X-A"], &["", "X_A"]);
        fine(percent, &["0%", "100%"], &["", "%", "1", "-1%"]);
        fine(port_name, &["http", "a1-2"], &["", "1", "a--b", "-a", "abcdefghijklmnop", "A"]);
        fine(path_segment_name, &["a", "system:node", "..."], &[".", "..", "a/b", "a%"]);
    }

    #[test]
    fn words_messages_as_upstream() {
        let text = |messages: Vec<String>| messages.join("; ");
        assert_eq!(
            text(dns1123_label("A")),
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        );
        assert_eq!(text(dns1123_label("a.b")), "must not contain dots");
        assert_eq!(
            text(dns1123_subdomain("A")),
            r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        );
        assert_eq!(
            text(qualified_name("")),
            "name part must be non-empty; name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        );
        assert_eq!(text(label_value(&"a".repeat(64))), "must be no more than 63 bytes");
        assert_eq!(text(dns1035_label(&"a".repeat(64))), "must be no more than 63 characters");
        assert_eq!(text(port_number(0)), "must be between 1 and 65535, inclusive");
        assert_eq!(
            fully_qualified_name(&Path::new("spec"), "a.b")[0].to_string(),
            "spec: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots"
        );
    }

    #[test]
    fn reads_addresses() {
        let first = |messages: Vec<String>| messages.into_iter().next().unwrap_or_default();
        assert_eq!(first(ip("10.0.0.1")), "");
        assert_eq!(first(ip("fe80::1")), "");
        assert_eq!(first(ip("010.0.0.1")), "must not have leading 0s");
        assert_eq!(first(ip_for_legacy_field("010.0.0.1", false)), "");
        assert_eq!(first(ip("::ffff:1.2.3.4")), "must not be an IPv4-mapped IPv6 address");
        assert_eq!(first(ip("FE80:0::1")), "must be in canonical form (\"fe80::1\")");
        assert_eq!(first(ip("fe80::1%eth0")), "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        assert_eq!(first(ip("256.0.0.1")), "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        assert_eq!(first(cidr("10.0.0.0/8")), "");
        assert_eq!(first(cidr("::/0")), "");
        assert_eq!(first(cidr("0.0.0.0/0")), "");
        assert_eq!(first(cidr("10.0.0.1/8")), "must not have bits set beyond the prefix length");
        assert_eq!(first(cidr("10.0.0.0/08")), "must not have leading 0s in IP or prefix length");
        assert_eq!(first(cidr("10.0.0.0/33")), "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        assert_eq!(first(interface_address("192.168.1.5/24")), "");
    }

    #[test]
    fn generates_names() {
        assert_eq!(generate_name("web-", 0), "web-bbbbb");
        assert_eq!(generate_name("web-", 26), "web-9bbbb");
        assert_eq!(generate_name(&"é".repeat(40), 1).len(), 63);
        assert_eq!(mask_trailing_dash("web-"), "wea");
        assert_eq!(mask_trailing_dash("-"), "-");
    }
}
