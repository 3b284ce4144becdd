//! A request as handlers see it: names of its path, query, body fields, paging.

use super::{envelope::encode_path, filter::Filter, routes::Names};
use crate::{Control, ControlError, vaults::VaultKey};
use leeward_model::{JobId, PointId};
use serde_json::{Value, json};
use std::str::FromStr;

/// Objects on a page unless the client asks otherwise.
const PAGE_ITEMS: u64 = 200;
/// The most objects on a page.
const PAGE_ITEMS_MAX: u64 = 1000;

/// Is one request.
pub(super) struct Call {
    /// The config server.
    pub control: Control,
    /// Fingerprint of the CA's certificate, hexadecimal.
    pub ca_fingerprint: String,
    /// Scheme, host and port as the client sees them.
    pub origin: String,
    /// The path as it was sent, without the query.
    pub path: String,
    /// Names in the path.
    pub names: Names,
    /// The query.
    pub query: Query,
    /// The body: an object, or null.
    pub body: Value,
}

impl Call {
    /// Names of the vault in the path.
    pub fn vault_key(&self) -> VaultKey {
        VaultKey {
            subscription: self.names.get("subscription").into(),
            resource_group: self.names.get("group").into(),
            name: self.names.get("vault").into(),
        }
    }
    /// The job in the path.
    ///
    /// # Errors
    /// NotFound: what is no id is no job's name.
    pub fn job(&self) -> Result<JobId, ControlError> {
        let name = self.names.get("job");
        name.parse().map_err(|_| ControlError::not_found(format!("there is no job {name}")))
    }
    /// The recovery point in the path.
    ///
    /// # Errors
    /// NotFound, as for [`Self::job`].
    pub fn point(&self) -> Result<PointId, ControlError> {
        let name = self.names.get("point");
        name.parse()
            .map_err(|_| ControlError::not_found(format!("there is no recovery point {name}")))
    }
    /// The body's `properties`.
    ///
    /// # Errors
    /// BadRequest when it is there and no object.
    pub fn properties(&self) -> Result<Fields<'_>, ControlError> {
        Fields::new(&self.body).object("properties")
    }
    /// The `$filter`, which may name the properties in `known`.
    ///
    /// # Errors
    /// BadRequest when it cannot be understood.
    pub fn filter(&self, known: &[&str]) -> Result<Filter, ControlError> {
        Filter::parse(self.query.get("$filter").unwrap_or_default(), known)
    }
    /// Number of objects to leave out, and to show.
    ///
    /// # Errors
    /// BadRequest when the token is none of ours or the page size is out of bounds.
    pub fn window(&self) -> Result<(u64, u64), ControlError> {
        let query = &self.query;
        let token = query.get("skiptoken").or(query.get("$skiptoken")).or(query.get("taketoken"));
        let skip = number(token, "skipToken")?.unwrap_or(0);
        let size = number(query.get("$take").or(query.get("$top")), "$take")?;
        let size = size.unwrap_or(PAGE_ITEMS);
        if !(1..=PAGE_ITEMS_MAX).contains(&size) {
            let what = format!("$take is {size}; it may be 1 to {PAGE_ITEMS_MAX}");
            return Err(ControlError::bad_request(what));
        }
        Ok((skip, size))
    }
    /// A list's body; `next` is the token of the next page.
    pub fn list_body(&self, values: Vec<Value>, next: Option<u64>) -> Value {
        let link = next.map(|token| {
            let path = encode_path(&decoded(&self.path));
            format!("{}{path}?{}", self.origin, self.query.with("skipToken", &token.to_string()))
        });
        json!({ "value": values, "nextLink": link })
    }
    /// The page of `all` that the client asked for.
    ///
    /// # Errors
    /// As [`Self::window`].
    pub fn page(&self, all: Vec<Value>) -> Result<Value, ControlError> {
        let (skip, size) = self.window()?;
        let total = all.len() as u64;
        let end = skip.saturating_add(size);
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX);
        let shown = usize::try_from(size).unwrap_or(usize::MAX);
        let values = all.into_iter().skip(skipped).take(shown).collect();
        Ok(self.list_body(values, (end < total).then_some(end)))
    }
}

fn decoded(path: &str) -> String {
    super::routes::decode(path).unwrap_or_else(|| path.to_owned())
}

fn number(text: Option<&str>, name: &str) -> Result<Option<u64>, ControlError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(ControlError::bad_request(format!("{name} {text} is not a number of ours"))),
    }
}

/// The parameters after `?`, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the text after `?`. A parameter with a broken escape is left out.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| super::routes::decode(&text.replace('+', " "));
            Some((plain(name)?, plain(value)?))
        });
        Query(pairs.collect())
    }
    /// Value of a parameter; `name` is in lower case, the request's spelling does not matter.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
    /// The version of the contract that the client named; any is served.
    pub fn api_version(&self) -> &str {
        let named = self.get("api-version").filter(|version| {
            version.len() <= 32
                && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        });
        named.filter(|version| !version.is_empty()).unwrap_or("2025-08-01")
    }
    /// The query again, with one parameter set.
    fn with(&self, name: &str, value: &str) -> String {
        let is_token = |key: &str| {
            let key = key.trim_start_matches('$');
            key.eq_ignore_ascii_case("skiptoken") || key.eq_ignore_ascii_case("taketoken")
        };
        let kept = self.0.iter().filter(|(key, _)| !is_token(key));
        let mut parts: Vec<String> =
            kept.map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect();
        parts.push(format!("{name}={}", escape(value)));
        parts.join("&")
    }
}

fn escape(text: &str) -> String {
    encode_path(text).replace('/', "%2F").replace("%24", "$")
}

/// The fields of one JSON object. Names are read without regard to case; null is absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    /// The fields of `value`; of anything but an object: none.
    pub fn new(value: &'a Value) -> Self {
        Fields(value)
    }
    /// A field as it came.
    pub fn raw(&self, name: &str) -> Option<&'a Value> {
        let map = self.0.as_object()?;
        let exact = map.get(name);
        let found = exact.or_else(|| {
            map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        });
        found.filter(|value| !value.is_null())
    }
    /// An object's fields; none when it is absent.
    ///
    /// # Errors
    /// BadRequest when it is something else.
    pub fn object(&self, name: &str) -> Result<Fields<'a>, ControlError> {
        match self.raw(name) {
            None => Ok(Fields(&Value::Null)),
            Some(value) if value.is_object() => Ok(Fields(value)),
            Some(_) => Err(wrong(name, "an object")),
        }
    }
    /// A text; an empty one is absent.
    ///
    /// # Errors
    /// BadRequest when it is something else.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ControlError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(_) => Err(wrong(name, "a text")),
        }
    }
    /// A text that must be there.
    ///
    /// # Errors
    /// BadRequest when it is absent or something else.
    pub fn required(&self, name: &str) -> Result<&'a str, ControlError> {
        let missing = || ControlError::bad_request(format!("the field {name} is missing"));
        self.text(name)?.ok_or_else(missing)
    }
    /// A number of at least 0, also when it came as a text.
    ///
    /// # Errors
    /// BadRequest when it is something else.
    pub fn number(&self, name: &str) -> Result<Option<f64>, ControlError> {
        let number = match self.raw(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        match number {
            Some(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
            _ => Err(wrong(name, "a number of at least 0")),
        }
    }
    /// Yes or no, also as the texts that the contract uses for it.
    ///
    /// # Errors
    /// BadRequest when it is something else.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ControlError> {
        let text = match self.raw(name) {
            None => return Ok(None),
            Some(Value::Bool(flag)) => return Ok(Some(*flag)),
            Some(Value::String(text)) => text.to_ascii_lowercase(),
            Some(_) => String::new(),
        };
        match text.as_str() {
            "true" | "enable" | "enabled" | "yes" => Ok(Some(true)),
            "false" | "disable" | "disabled" | "no" => Ok(Some(false)),
            _ => Err(wrong(name, "true or false")),
        }
    }
}

/// The objects of a list; none when it is absent.
///
/// # Errors
/// BadRequest when it is something else, or holds something else.
pub(super) fn list<'a>(fields: Fields<'a>, name: &str) -> Result<Vec<Fields<'a>>, ControlError> {
    let Some(value) = fields.raw(name) else { return Ok(Vec::new()) };
    let values = value.as_array().ok_or_else(|| wrong(name, "a list"))?;
    let objects = values.iter().map(|value| match value.is_object() {
        true => Ok(Fields::new(value)),
        false => Err(wrong(name, "a list of objects")),
    });
    objects.collect()
}

fn wrong(name: &str, wanted: &str) -> ControlError {
    ControlError::bad_request(format!("the field {name} is not {wanted}"))
}

/// The name after segment `kind` of an id, or the whole text when it is a bare name.
///
/// None for an id that has no such segment.
pub(super) fn name_in_id<'a>(id: &'a str, kind: &str) -> Option<&'a str> {
    if !id.contains('/') {
        return Some(id).filter(|name| !name.is_empty());
    }
    let mut segments = id.split('/');
    segments.find(|segment| segment.eq_ignore_ascii_case(kind))?;
    segments.next().filter(|name| !name.is_empty())
}

/// Reads an id that stands alone or at `kind` of a longer one.
///
/// # Errors
/// BadRequest naming `field`.
pub(super) fn id_in<T: FromStr>(text: &str, kind: &str, field: &str) -> Result<T, ControlError> {
    let parsed = name_in_id(text, kind).and_then(|name| name.parse().ok());
    parsed.ok_or_else(|| ControlError::bad_request(format!("{field} {text} names no {kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_any_spelling_and_refused_in_any_other_type() {
        let body = json!({"A": "x", "n": "30", "o": {"in": 1}, "f": "Enabled", "none": null});
        let fields = Fields::new(&body);

        assert_eq!(fields.text("a").unwrap(), Some("x"));
        assert_eq!(fields.number("N").unwrap(), Some(30.0));
        assert_eq!(fields.flag("f").unwrap(), Some(true));
        assert_eq!(fields.object("o").unwrap().number("in").unwrap(), Some(1.0));
        assert_eq!(fields.text("none").unwrap(), None);
        assert!(fields.text("n").is_ok() && fields.text("o").is_err());
        assert!(fields.number("a").is_err() && fields.flag("o").is_err());
        assert!(fields.object("a").is_err() && fields.required("gone").is_err());
        assert!(Fields::new(&json!({"n": -1})).number("n").is_err());
        assert!(Fields::new(&json!({"n": "NaN"})).number("n").is_err());
    }

    #[test]
    fn names_are_read_out_of_ids_and_bare_names() {
        assert_eq!(name_in_id("p", "replicationPolicies"), Some("p"));
        assert_eq!(name_in_id("/x/REPLICATIONpolicies/p/q", "replicationPolicies"), Some("p"));
        assert_eq!(name_in_id("/x/replicationPolicies/", "replicationPolicies"), None);
        assert_eq!(name_in_id("/x/y", "replicationPolicies"), None);
        assert_eq!(name_in_id("", "replicationPolicies"), None);
    }

    #[test]
    fn a_query_is_read_in_any_spelling_and_written_with_a_new_token() {
        let query = Query::parse("Api-Version=2024-01-01&$filter=a+eq+%27x%27&skipToken=3&%zz=1");

        assert_eq!(query.api_version(), "2024-01-01");
        assert_eq!(query.get("$filter"), Some("a eq 'x'"));
        assert_eq!(
            query.with("skipToken", "9"),
            "Api-Version=2024-01-01&$filter=a%20eq%20%27x%27&skipToken=9"
        );
        assert_eq!(Query::parse("api-version=a%0ab").api_version(), "2025-08-01");
    }
}
