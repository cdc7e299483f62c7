//! A DNS server, with the records that the test gives it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use simple_dns::rdata::{A, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use crate::lab::Namespace;

#[derive(Clone, Debug)]
pub(crate) enum Record {
    Address(Ipv4Addr),
    Service { priority: u16, weight: u16, port: u16, target: String },
}

/// By name in lower case, without the last dot.
pub(crate) type Records = BTreeMap<String, Vec<Record>>;

/// Answers until it is dropped.
pub(crate) struct NameServer {
    address: SocketAddr,
    namespace: Namespace,
    thread: Option<JoinHandle<()>>,
}

const OVER: &[u8] = b"over";

impl NameServer {
    pub(crate) fn start(
        namespace: &Namespace,
        address: &str,
        records: &Arc<Mutex<Records>>,
    ) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let socket = namespace.enter(|| UdpSocket::bind(address).unwrap());
        let records = Arc::clone(records);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut bytes).unwrap();
                if &bytes[..length] == OVER {
                    return;
                }
                let answer = answer(&bytes[..length], &records.lock().unwrap());
                let _ = socket.send_to(&answer, from);
            }
        });
        Self { address, namespace: namespace.clone(), thread: Some(thread) }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let (address, any) = (self.address, SocketAddr::new(self.address.ip(), 0));
        self.namespace.enter(|| UdpSocket::bind(any).unwrap().send_to(OVER, address).unwrap());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(query: &[u8], records: &Records) -> Vec<u8> {
    let query = Packet::parse(query).unwrap();
    let question = &query.questions[0];
    let name = question.qname.to_string().to_lowercase();
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    match records.get(&name) {
        Some(all) => {
            let wanted = |record: &&Record| match record {
                Record::Address(_) => question.qtype == QTYPE::TYPE(TYPE::A),
                Record::Service { .. } => question.qtype == QTYPE::TYPE(TYPE::SRV),
            };
            for record in all.iter().filter(wanted) {
                let data = data(record);
                reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 1, data));
            }
        }
        None => *reply.rcode_mut() = RCODE::NameError,
    }
    reply.questions.push(question.clone());
    reply.build_bytes_vec().unwrap()
}

fn data(record: &Record) -> RData<'_> {
    match record {
        Record::Address(address) => RData::A(A { address: (*address).into() }),
        Record::Service { priority, weight, port, target } => RData::SRV(SRV {
            priority: *priority,
            weight: *weight,
            port: *port,
            target: Name::new(target).unwrap(),
        }),
    }
}

/// Addresses and services out of a zone file, of which no more is understood than is used.
pub(crate) fn zone(path: &Path) -> Records {
    let (mut records, mut origin) = (Records::new(), String::new());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let words: Vec<_> = line.split(';').next().unwrap().split_whitespace().collect();
        let (name, record) = match words[..] {
            ["$ORIGIN", name] => {
                name.trim_end_matches('.').clone_into(&mut origin);
                continue;
            }
            [name, _, "IN", "A", address] => (name, Record::Address(address.parse().unwrap())),
            [name, _, "IN", "SRV", priority, weight, port, target] => {
                let [priority, weight, port] =
                    [priority, weight, port].map(|word| word.parse().unwrap());
                let target = target.trim_end_matches('.').to_owned();
                (name, Record::Service { priority, weight, port, target })
            }
            _ => continue,
        };
        records.entry(format!("{name}.{origin}")).or_default().push(record);
    }
    records
}
