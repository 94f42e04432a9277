//! Services, endpoints, ingresses and addresses.

use serde_json::Value;

use super::cell::{self, Cells, NONE, UNKNOWN, UNSET};
use super::{AGE, Kind, NAME, SELECTOR};
use crate::meta;

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "",
        kind: "Service",
        columns: &[
            NAME,
            ("Type", "string", 0, "How the service is exposed."),
            ("Cluster-IP", "string", 0, "Address within the cluster."),
            ("External-IP", "string", 0, "Addresses or name outside the cluster."),
            ("Port(s)", "string", 0, "Ports, with their node ports."),
            AGE,
            SELECTOR,
        ],
        cells: |c| {
            vec![
                c.name(),
                c.text("/spec/type").into(),
                c.text_or("/spec/clusterIPs/0", c.text_or("/spec/clusterIP", NONE)).into(),
                external_ip(c).into(),
                cell::or_none(ports(c)).into(),
                c.age(),
                c.labels("/spec/selector"),
            ]
        },
    },
    Kind {
        group: "",
        kind: "Endpoints",
        columns: &[NAME, ("Endpoints", "string", 0, "Addresses with ports, the first few."), AGE],
        cells: |c| vec![c.name(), endpoints(c).into(), c.age()],
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        columns: &[
            NAME,
            ("AddressType", "string", 0, "Family of the addresses."),
            ("Ports", "string", 0, "Ports, the first few."),
            ("Endpoints", "string", 0, "Addresses, the first few."),
            AGE,
        ],
        cells: |c| {
            let addresses = c.list("/endpoints").iter().flat_map(|e| meta::strings(e.get("addresses")));
            let addresses: Vec<String> = addresses.map(str::to_owned).collect();
            let ports: Vec<String> = c.list("/ports").iter().map(slice_port).collect();
            vec![c.name(), c.text("/addressType").into(), or_unset(&ports), or_unset(&addresses), c.age()]
        },
    },
    Kind {
        group: "networking.k8s.io",
        kind: "Ingress",
        columns: &[
            NAME,
            ("Class", "string", 0, "Class whose controller serves the ingress."),
            ("Hosts", "string", 0, "Hosts that requests are matched against."),
            ("Address", "string", 0, "Addresses of the load balancer."),
            ("Ports", "string", 0, "Ports that are open."),
            AGE,
        ],
        cells: |c| {
            vec![
                c.name(),
                c.text_or("/spec/ingressClassName", NONE).into(),
                hosts(c).into(),
                c.load_balancer().join(",").into(),
                if c.list("/spec/tls").is_empty() { "80" } else { "80, 443" }.into(),
                c.age(),
            ]
        },
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IngressClass",
        columns: &[
            NAME,
            ("Controller", "string", 0, "Controller that serves the class."),
            ("Parameters", "string", 0, "Object with further settings."),
            AGE,
        ],
        cells: |c| vec![c.name(), c.text("/spec/controller").into(), class_parameters(c).into(), c.age()],
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        columns: &[NAME, ("Pod-Selector", "string", 0, "Labels of the pods that the policy is for."), AGE],
        cells: |c| vec![c.name(), c.selector("/spec/podSelector"), c.age()],
    },
    Kind {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        columns: &[NAME, ("CIDRs", "string", 0, "Ranges that cluster addresses are taken from."), AGE],
        cells: |c| vec![c.name(), meta::strings(c.get("/spec/cidrs")).join(",").into(), c.age()],
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IPAddress",
        columns: &[NAME, ("ParentRef", "string", 0, "What the address is given to."), AGE],
        cells: |c| vec![c.name(), parent(c).into(), c.age()],
    },
];

fn external_ip(c: &Cells<'_>) -> String {
    let external = meta::strings(c.get("/spec/externalIPs"));
    match c.text("/spec/type") {
        "ClusterIP" | "NodePort" => cell::or_none(external.join(",")),
        "LoadBalancer" => {
            let all: Vec<&str> = c.load_balancer().into_iter().chain(external).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => c.text("/spec/externalName").to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

/// `80/TCP,443:30443/TCP`
fn ports(c: &Cells<'_>) -> String {
    let number = |port: &Value, field: &str| port.get(field).and_then(Value::as_i64).unwrap_or(0);
    let text = |port: &Value| {
        let protocol = meta::str_at(port, &["protocol"]);
        match number(port, "nodePort") {
            1.. => format!("{}:{}/{protocol}", number(port, "port"), number(port, "nodePort")),
            _ => format!("{}/{protocol}", number(port, "port")),
        }
    };
    c.list("/spec/ports").iter().map(text).collect::<Vec<_>>().join(",")
}

fn endpoints(c: &Cells<'_>) -> String {
    let subsets = c.list("/subsets");
    if subsets.is_empty() {
        return NONE.to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let addresses: Vec<&str> =
            cell::list(subset, "/addresses").iter().map(|address| meta::str_at(address, &["ip"])).collect();
        let ports = cell::list(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|ip| (*ip).to_owned()));
        }
        for port in ports {
            let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
            let joined =
                |ip: &&str| if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") };
            all.extend(addresses.iter().map(joined));
        }
    }
    Cells::first_three(&all)
}

fn slice_port(port: &Value) -> String {
    match port.get("port").and_then(Value::as_i64) {
        Some(number) => number.to_string(),
        None => port.get("name").and_then(Value::as_str).unwrap_or("*").to_owned(),
    }
}

fn or_unset(items: &[String]) -> Value {
    if items.is_empty() { UNSET.into() } else { Cells::first_three(items).into() }
}

fn hosts(c: &Cells<'_>) -> String {
    const MAX: usize = 3;
    let rules = c.list("/spec/rules");
    let mut shown: Vec<&str> = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= shown.len() == MAX;
        let host = meta::str_at(rule, &["host"]);
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - MAX),
        (false, false) => shown.join(","),
    }
}

/// `Kind.group/name`
fn class_parameters(c: &Cells<'_>) -> String {
    if c.get("/spec/parameters").is_none() {
        return NONE.to_owned();
    }
    let group = c.get("/spec/parameters/apiGroup").map(|group| format!(".{}", cell::plain(group))).unwrap_or_default();
    format!("{}{group}/{}", c.text("/spec/parameters/kind"), c.text("/spec/parameters/name"))
}

/// `services/namespace/name`, with the resource as `resource.group`
fn parent(c: &Cells<'_>) -> String {
    if c.get("/spec/parentRef").is_none() {
        return NONE.to_owned();
    }
    let text = |field: &str| c.text(&format!("/spec/parentRef/{field}")).to_owned();
    let resource = crate::status::GroupResource::new(&text("group"), &text("resource")).to_string().to_lowercase();
    let parts = [resource, text("namespace"), text("name")];
    parts
        .iter()
        .enumerate()
        .filter(|(i, part)| *i != 1 || !part.is_empty())
        .map(|(_, part)| part.as_str())
        .collect::<Vec<_>>()
        .join("/")
}
