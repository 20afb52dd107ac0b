//! Policy text as a tree of values that know where they stand. TOML and JSON become the same tree, so that every later error
//! has a line and a column in both: no JSON deserializer of serde's gives the position of a value.

use super::error::{PolicyError, Position};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, cell::Cell, fmt, sync::Arc};
use toml::de::{DeTable, DeValue};

/// Tables within arrays within tables are as deep as any key goes; what lies deeper is wrong whatever it is.
const DEPTH: u32 = 4;

/// One value and where it starts.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Table(Vec<Entry>),
    Array(Vec<Node>),
    Text(String),
    Integer(i64),
    Boolean(bool),
    /// Something that no key takes, by its name.
    Other(&'static str),
}

/// A key of a table, in the order of the text.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) node: Node,
}

impl Value {
    /// For "… where a string is expected".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Table(_) => "a table".into(),
            Self::Array(_) => "a list".into(),
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(value) => value.to_string(),
            Self::Other(what) => (*what).into(),
        }
    }
}

/// Turns byte offsets into positions.
pub(super) struct Text<'a> {
    name: Arc<str>,
    content: &'a str,
    /// The last offset that was asked for, with its line and column: the next one is mostly behind it.
    last: Cell<(usize, u32, u32)>,
}

impl<'a> Text<'a> {
    pub(super) fn new(name: &str, text: &'a str) -> Self {
        Self { name: name.into(), content: text, last: Cell::new((0, 1, 1)) }
    }

    pub(super) fn position(&self, offset: usize) -> Position {
        let (from, line, column) = Some(self.last.get()).filter(|(from, ..)| *from <= offset).unwrap_or((0, 1, 1));
        let between = self.content.get(from..offset).unwrap_or_default();
        let chars = |text: &str| text.chars().count() as u32;
        let (line, column) = match between.rsplit_once('\n') {
            Some((before, after)) => (line + before.matches('\n').count() as u32 + 1, chars(after) + 1),
            None => (line, column + chars(between)),
        };
        self.last.set((offset, line, column));
        Position::new(Arc::clone(&self.name), line, column)
    }

    pub(super) fn toml(&self) -> Result<Node, PolicyError> {
        let table = DeTable::parse(self.content).map_err(|error| PolicyError::Syntax {
            at: self.position(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        Ok(Node { at: table.span().start, value: from_table(table.get_ref(), 0) })
    }

    pub(super) fn json(&self) -> Result<Node, PolicyError> {
        let raw: &RawValue = serde_json::from_str(self.content).map_err(|error| PolicyError::Syntax {
            at: Position::new(Arc::clone(&self.name), error.line() as u32, error.column() as u32),
            message: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        })?;
        self.json_node(raw.get(), 0)
    }

    /// `raw` is a slice of the whole text: its address is its offset.
    fn json_node(&self, raw: &str, depth: u32) -> Result<Node, PolicyError> {
        let at = (raw.as_ptr() as usize).saturating_sub(self.content.as_ptr() as usize);
        // The syntax was checked as a whole, so what fails here is a value that no key takes.
        let value = match raw.as_bytes().first() {
            Some(b'{' | b'[') if depth > DEPTH => Value::Other("a value nested too deep"),
            Some(b'{') => match serde_json::from_str::<Members<'_>>(raw) {
                Ok(members) => Value::Table(self.json_entries(members.0, depth)?),
                Err(_) => Value::Other("an object that cannot be read"),
            },
            Some(b'[') => match serde_json::from_str::<Vec<&RawValue>>(raw) {
                Ok(items) => {
                    let items = items.into_iter().map(|item| self.json_node(item.get(), depth + 1));
                    Value::Array(items.collect::<Result<_, _>>()?)
                }
                Err(_) => Value::Other("a list that cannot be read"),
            },
            Some(b'"') => serde_json::from_str(raw).map_or(Value::Other("a string that is not Unicode"), Value::Text),
            Some(b't') => Value::Boolean(true),
            Some(b'f') => Value::Boolean(false),
            Some(b'n') => Value::Other("null"),
            _ => serde_json::from_str(raw).map_or(Value::Other("a number that is no integer"), Value::Integer),
        };
        Ok(Node { at, value })
    }

    fn json_entries(&self, members: Vec<(Cow<'_, str>, &RawValue)>, depth: u32) -> Result<Vec<Entry>, PolicyError> {
        let mut entries: Vec<Entry> = Vec::with_capacity(members.len());
        for (key, raw) in members {
            let node = self.json_node(raw.get(), depth + 1)?;
            let before = self.content.get(..node.at).unwrap_or_default().trim_end().trim_end_matches(':').trim_end();
            let at = before.strip_suffix('"').and_then(|before| before.rfind('"')).unwrap_or(node.at);
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                let (at, first) = (self.position(at), self.position(first.at));
                return Err(PolicyError::DuplicateKey { at, key: key.into_owned(), first });
            }
            entries.push(Entry { at, key: key.into_owned(), node });
        }
        Ok(entries)
    }
}

fn from_table(table: &DeTable<'_>, depth: u32) -> Value {
    if depth > DEPTH {
        return Value::Other("a value nested too deep");
    }
    let entry = |(key, value): (&toml::Spanned<Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| Entry {
        at: key.span().start,
        key: key.get_ref().to_string(),
        node: Node { at: value.span().start, value: from_toml(value.get_ref(), depth + 1) },
    };
    let mut entries: Vec<Entry> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.at);
    Value::Table(entries)
}

fn from_toml(value: &DeValue<'_>, depth: u32) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number out of range"), Value::Integer),
        DeValue::Float(_) => Value::Other("a number that is no integer"),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(_) if depth > DEPTH => Value::Other("a value nested too deep"),
        DeValue::Array(items) => {
            let node = |item: &toml::Spanned<DeValue<'_>>| Node {
                at: item.span().start,
                value: from_toml(item.get_ref(), depth + 1),
            };
            Value::Array(items.iter().map(node).collect())
        }
        DeValue::Table(table) => from_table(table, depth),
    }
}

/// A JSON object as its members, in order and with duplicates.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(InOrder).map(Members)
    }
}
