//! Gives a name of the DNS other addresses: RFC 2136 over TCP, signed with TSIG. Asks the zone's
//! own server alone, never a resolver.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode, UpdateMessage as _},
    rr::{
        DNSClass, Name, RData, Record, RecordType, TSigner,
        rdata::{A, AAAA, tsig::TsigAlgorithm},
    },
};
use leeward_control::plans::{ActionEnd, DnsUpdate, KeyAlgorithm, Task};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How far the server's clock may be from ours, in seconds: as RFC 8945 recommends.
const FUDGE_S: u16 = 300;
/// The types of addresses.
const TYPES: [RecordType; 2] = [RecordType::A, RecordType::AAAA];

/// Is the addresses that a name has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    addresses: BTreeSet<IpAddr>,
    ttl_s: u32,
}

/// Looks up, changes, or puts back.
pub(super) async fn run(
    update: &DnsUpdate,
    task: Task,
    found: Option<&serde_json::Value>,
) -> Result<ActionEnd, String> {
    let zone = Zone::of(update)?;
    let wanted = update.addresses.iter().copied().collect();
    let wanted = Found { addresses: wanted, ttl_s: update.ttl_s };
    match task {
        Task::Look => {
            let before = zone.look().await?;
            let output = told(&before.addresses);
            let found = serde_json::to_value(before).map_err(|error| error.to_string())?;
            Ok(ActionEnd { found: Some(found), output, ..ActionEnd::default() })
        }
        Task::Do => {
            zone.set(&wanted, None).await?;
            Ok(ActionEnd { output: told(&wanted.addresses), ..ActionEnd::default() })
        }
        Task::Undo => {
            // Nothing is changed before what was there is known.
            let Some(before) = found else { return Ok(ActionEnd::default()) };
            let before: Found =
                serde_json::from_value(before.clone()).map_err(|error| error.to_string())?;
            let now = zone.look().await?;
            if now.addresses == before.addresses {
                return Ok(ActionEnd::default());
            }
            if now.addresses != wanted.addresses {
                return Err(format!(
                    "{} has {} now, which this plan did not set: it is left so",
                    update.name,
                    told(&now.addresses)
                ));
            }
            zone.set(&before, Some(&wanted)).await?;
            Ok(ActionEnd { output: told(&before.addresses), ..ActionEnd::default() })
        }
    }
}

fn told(addresses: &BTreeSet<IpAddr>) -> String {
    match addresses.is_empty() {
        true => "no address".to_owned(),
        false => addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Is the zone's server, and who asks it for what.
struct Zone<'a> {
    server: &'a str,
    zone: Name,
    name: Name,
    key: TSigner,
}

fn name(text: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(text).map_err(|error| format!("{text}: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}

impl Zone<'_> {
    fn of(update: &DnsUpdate) -> Result<Zone<'_>, String> {
        let algorithm = match update.key_algorithm {
            KeyAlgorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
            KeyAlgorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
            KeyAlgorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
        };
        let key = update.key.as_ref().and_then(|key| STANDARD.decode(key.reveal()).ok());
        let key = key.ok_or("the key is not there")?;
        let key = TSigner::new(key, algorithm, name(&update.key_name)?, FUDGE_S);
        Ok(Zone {
            server: &update.server,
            zone: name(&update.zone)?,
            name: name(&update.name)?,
            key: key.map_err(|error| error.to_string())?,
        })
    }

    /// The addresses that the name has.
    async fn look(&self) -> Result<Found, String> {
        let mut found = Found { addresses: BTreeSet::new(), ttl_s: 0 };
        for kind in TYPES {
            let mut message = Message::query();
            message.add_query(Query::query(self.name.clone(), kind));
            let answer = self.ask(message).await?;
            if ![ResponseCode::NoError, ResponseCode::NXDomain].contains(&answer.response_code) {
                return Err(self.refused("question", answer.response_code));
            }
            for record in &answer.answers {
                let address = match &record.data {
                    RData::A(A(address)) => IpAddr::V4(*address),
                    RData::AAAA(AAAA(address)) => IpAddr::V6(*address),
                    RData::CNAME(_) => {
                        let what = "is an alias, which has no addresses of its own";
                        return Err(format!("{} {what}", self.name));
                    }
                    _ => continue,
                };
                found.addresses.insert(address);
                found.ttl_s = record.ttl;
            }
        }
        Ok(found)
    }

    /// Gives the name these addresses and no others, at once; only if it has those of `only_if`.
    async fn set(&self, wanted: &Found, only_if: Option<&Found>) -> Result<(), String> {
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        message.add_zone(Query::query(self.zone.clone(), RecordType::SOA));
        for kind in TYPES.iter().filter(|_| only_if.is_some()) {
            let before: Vec<_> = self.records(only_if, *kind).collect();
            if before.is_empty() {
                let mut none = Record::update0(self.name.clone(), 0, *kind);
                none.dns_class = DNSClass::NONE;
                message.add_pre_requisite(none);
            }
            for mut record in before {
                record.ttl = 0;
                message.add_pre_requisite(record);
            }
        }
        for kind in TYPES {
            let mut all = Record::update0(self.name.clone(), 0, kind);
            all.dns_class = DNSClass::ANY;
            message.add_update(all);
            message.add_updates(self.records(Some(wanted), kind));
        }
        let answer = self.ask(message).await?;
        match answer.response_code {
            ResponseCode::NoError => Ok(()),
            code => Err(self.refused("update", code)),
        }
    }

    fn records(&self, of: Option<&Found>, kind: RecordType) -> impl Iterator<Item = Record> {
        let all = of.into_iter().flat_map(|of| of.addresses.iter().map(|one| (*one, of.ttl_s)));
        let of_kind = move |(address, ttl): (IpAddr, u32)| {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            };
            let record = Record::from_rdata(self.name.clone(), ttl, data);
            (record.record_type() == kind).then_some(record)
        };
        all.filter_map(of_kind)
    }

    fn refused(&self, what: &str, code: ResponseCode) -> String {
        format!("{} refused the {what} for {}: {code}", self.server, self.name)
    }

    /// Asks the server, and takes its answer only with a signature by the same key.
    async fn ask(&self, mut message: Message) -> Result<Message, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let verifier = message.finalize(&self.key, now).map_err(|error| error.to_string())?;
        let sent = message.to_vec().map_err(|error| error.to_string())?;
        let got = self.exchange(&sent).await.map_err(|error| format!("{}: {error}", self.server));
        let got = got?;
        let plain = Message::from_vec(&got).map_err(|error| error.to_string())?;
        if plain.id != message.id {
            return Err(format!("{} answered something else", self.server));
        }
        let mut verifier = verifier.ok_or("the request was not signed")?;
        match verifier.verify(&got) {
            Ok(_) => Ok(plain),
            Err(_) if plain.response_code != ResponseCode::NoError => Err(format!(
                "{} did not take the key {} ({})",
                self.server,
                self.key.signer_name(),
                plain.response_code
            )),
            Err(error) => Err(format!("{} answered without its signature: {error}", self.server)),
        }
    }

    async fn exchange(&self, sent: &[u8]) -> std::io::Result<Vec<u8>> {
        let length = u16::try_from(sent.len()).map_err(std::io::Error::other)?;
        let mut stream = TcpStream::connect(self.server).await?;
        stream.write_all(&[&length.to_be_bytes()[..], sent].concat()).await?;
        let length = stream.read_u16().await?;
        let mut got = vec![0; usize::from(length)];
        stream.read_exact(&mut got).await?;
        Ok(got)
    }
}
