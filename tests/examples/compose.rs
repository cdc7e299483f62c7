//! What a test needs of a recipe's `compose.yaml`: its services, and what each is given.

use std::net::IpAddr;
use std::path::Path;

use yaml_rust2::{Yaml, YamlLoader};

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) hostname: Option<String>,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// `ipv4_address` and `ipv6_address` of its network, where the file gives them.
    pub(crate) addresses: Vec<IpAddr>,
    /// `NAME:ADDRESS`.
    pub(crate) extra_hosts: Vec<String>,
    pub(crate) volumes: Vec<String>,
}

/// In the order of the file.
pub(crate) fn services(file: &Path) -> Vec<Service> {
    let text = std::fs::read_to_string(file).unwrap();
    let documents = YamlLoader::load_from_str(&text).unwrap();
    let all = documents[0]["services"].as_hash().expect("services");
    all.iter().map(|(name, service)| one(&word(name), service)).collect()
}

fn one(name: &str, service: &Yaml) -> Service {
    Service {
        name: name.to_owned(),
        image: word(&service["image"]),
        hostname: service["hostname"].as_str().map(str::to_owned),
        command: words(&service["command"]),
        environment: environment(&service["environment"]),
        addresses: addresses(&service["networks"]),
        extra_hosts: words(&service["extra_hosts"]),
        volumes: words(&service["volumes"]),
    }
}

fn word(value: &Yaml) -> String {
    match value {
        Yaml::String(text) | Yaml::Real(text) => text.clone(),
        Yaml::Integer(number) => number.to_string(),
        Yaml::Boolean(value) => value.to_string(),
        other => panic!("a word was expected, not {other:?}"),
    }
}

fn words(list: &Yaml) -> Vec<String> {
    list.as_vec().map(|items| items.iter().map(word).collect()).unwrap_or_default()
}

fn environment(map: &Yaml) -> Vec<(String, String)> {
    let pairs = map.as_hash().into_iter().flatten();
    pairs.map(|(key, value)| (word(key), word(value))).collect()
}

fn addresses(networks: &Yaml) -> Vec<IpAddr> {
    let of_one = |network: &Yaml| {
        let all = ["ipv4_address", "ipv6_address"].map(|key| network[key].as_str());
        all.into_iter().flatten().map(|text| text.parse().unwrap()).collect::<Vec<_>>()
    };
    networks.as_hash().into_iter().flatten().flat_map(|(_, network)| of_one(network)).collect()
}
