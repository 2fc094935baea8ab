//! Reads JSON and queries into the types of requests as the OpenAPI document has them, and says in words of the API, not
//! of Rust, which field is wrong. What serde derives takes a list for an object, by position; here it does not.

use std::borrow::Cow;
use std::fmt;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use crate::api::error::Problem;

/// Reads `T` of a JSON value.
///
/// # Errors
/// What is wrong with which field, for people.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    T::deserialize(At { value, of_query: false }).map_err(|fault| fault.told("field", "the body"))
}

/// The parameters of a query, each at most once.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query<T>, Problem> {
        let mut fields = Map::new();
        for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            if fields.insert(name.to_string(), Value::String(value.into_owned())).is_some() {
                return Err(Problem::bad_request(format!("the parameter `{name}` is given twice")));
            }
        }
        T::deserialize(At { value: &Value::Object(fields), of_query: true })
            .map(Query)
            .map_err(|fault| Problem::bad_request(fault.told("parameter", "the query")))
    }
}

/// What is wrong, and where.
#[derive(Debug)]
struct Fault {
    /// From the field outwards: `weight`, `0`, `routes`.
    place: Vec<String>,
    what: What,
}

#[derive(Debug)]
enum What {
    Unknown { name: String, known: &'static [&'static str] },
    Missing(&'static str),
    Other(String),
}

impl Fault {
    fn new(what: What) -> Fault {
        Fault { place: Vec::new(), what }
    }

    /// The same of the value under `key`.
    fn under(mut self, key: impl Into<String>) -> Fault {
        self.place.push(key.into());
        self
    }

    /// In a sentence.
    fn told(self, noun: &str, whole: &str) -> String {
        let place = self.place.into_iter().rev().reduce(|path, key| format!("{path}.{key}"));
        let of = place.as_ref().map_or_else(String::new, |place| format!(" of `{place}`"));
        match self.what {
            What::Unknown { name, known: [] } => format!("unknown {noun} `{name}`{of}: there is none"),
            What::Unknown { name, known } => {
                format!("unknown {noun} `{name}`{of}; there are `{}`", known.join("`, `"))
            }
            What::Missing(name) => format!("the {noun} `{name}`{of} is missing"),
            What::Other(text) => {
                format!("{}: {text}", place.map_or_else(|| whole.to_owned(), |p| format!("`{p}`")))
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?}", self.place, self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Fault {
        Fault::new(What::Other(text.to_string()))
    }

    fn invalid_type(got: de::Unexpected<'_>, want: &dyn Expected) -> Fault {
        Fault::custom(format!("it must be {want}, not {got}"))
    }

    fn unknown_variant(got: &str, known: &'static [&'static str]) -> Fault {
        Fault::custom(format!("`{got}` is not one of `{}`", known.join("`, `")))
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Fault {
        Fault::new(What::Unknown { name: name.to_owned(), known })
    }

    fn missing_field(name: &'static str) -> Fault {
        Fault::new(What::Missing(name))
    }
}

/// A value to be read; of a query, where every value is text, also texts that are numbers or `true` and `false`.
#[derive(Clone, Copy)]
struct At<'v> {
    value: &'v Value,
    of_query: bool,
}

impl<'v> At<'v> {
    fn of(self, value: &'v Value) -> At<'v> {
        At { value, ..self }
    }

    fn must_be(self, want: &str) -> Fault {
        let got = match self.value {
            Value::Null => Cow::from("null"),
            Value::Array(_) => "a list".into(),
            Value::Object(_) => "an object".into(),
            // What a stranger wrote may be long.
            Value::String(text) => format!("{:?}", text.chars().take(100).collect::<String>()).into(),
            Value::Bool(_) | Value::Number(_) => self.value.to_string().into(),
        };
        Fault::new(What::Other(format!("it must be {want}, not {got}")))
    }

    /// The value, or what the text of a query says.
    fn plain(self) -> Cow<'v, Value> {
        match self.value {
            Value::String(text) if self.of_query => match serde_json::from_str(text) {
                Ok(plain @ (Value::Bool(_) | Value::Number(_))) => Cow::Owned(plain),
                _ => Cow::Borrowed(self.value),
            },
            value => Cow::Borrowed(value),
        }
    }

    fn fields<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::Object(fields) = self.value else { return Err(self.must_be("an object")) };
        visitor.visit_map(Fields { fields: fields.iter(), value: None, at: self })
    }

    fn list<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::Array(items) = self.value else { return Err(self.must_be("a list")) };
        visitor.visit_seq(Items { items: items.iter().enumerate(), at: self })
    }

    fn text<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            _ => Err(self.must_be("a text")),
        }
    }
}

/// Whole numbers, by their range.
macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
            let plain = self.plain();
            let number = plain.as_u64().map(i128::from).or(plain.as_i64().map(i128::from));
            match number.and_then(|n| <$type>::try_from(n).ok()) {
                Some(number) => visitor.$visit(number),
                None => Err(self.must_be(&format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX))),
            }
        }
    )*};
}

impl<'v> Deserializer<'v> for At<'v> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (_, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(_) => self.list(visitor),
            Value::Object(_) => self.fields(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.plain().as_bool() {
            Some(value) => visitor.visit_bool(value),
            None => Err(self.must_be("true or false")),
        }
    }

    whole_numbers!(
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    );

    fn deserialize_f32<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.plain().as_f64() {
            Some(number) => visitor.visit_f64(number),
            None => Err(self.must_be("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_string<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_option<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.fields(visitor)
    }

    fn deserialize_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.fields(visitor)
    }

    fn deserialize_enum<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value {
            Value::String(text) => visitor.visit_enum(StrDeserializer::new(text)),
            _ => Err(self.must_be("a text")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    // Requests have none of these.
    serde::forward_to_deserialize_any! {
        <V: Visitor<'v>>
        char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// The fields of an object.
struct Fields<'v> {
    fields: serde_json::map::Iter<'v>,
    /// The field whose name was read last.
    value: Option<(&'v String, &'v Value)>,
    at: At<'v>,
}

impl<'v> MapAccess<'v> for Fields<'v> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'v>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.value = self.fields.next();
        let Some((name, _)) = self.value else { return Ok(None) };
        seed.deserialize(BorrowedStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'v>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let (name, value) = self.value.take().expect("a value follows its name");
        seed.deserialize(self.at.of(value)).map_err(|fault| fault.under(name))
    }
}

/// The items of a list.
struct Items<'v> {
    items: std::iter::Enumerate<std::slice::Iter<'v, Value>>,
    at: At<'v>,
}

impl<'v> SeqAccess<'v> for Items<'v> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'v>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        seed.deserialize(self.at.of(value)).map(Some).map_err(|fault| fault.under(index.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Body {
        keep: bool,
        weight: Option<u32>,
        fraction: f64,
        name: Option<String>,
        kind: Option<Kind>,
        routes: Vec<Route>,
        recipe: Option<Map<String, Value>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Quantize,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Route {
        version: u32,
        weight: u32,
    }

    #[test]
    fn what_fits_is_read_as_serde_reads_it() {
        for body in [
            json!({}),
            json!({ "keep": true, "weight": null, "fraction": 1, "name": "a", "kind": "quantize" }),
            json!({ "routes": [{ "version": 1, "weight": 100 }], "recipe": { "a": [1, -2, 0.5, null, { "b": "c" }] } }),
        ] {
            let want: Body = serde_json::from_value(body.clone()).unwrap();
            assert_eq!(read::<Body>(&body).unwrap(), want, "{body}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_is_expected() {
        for (body, want) in [
            (json!([true]), "the body: it must be an object, not a list"),
            (json!({ "keep": "yes" }), "`keep`: it must be true or false, not \"yes\""),
            (json!({ "weight": -1 }), "`weight`: it must be a whole number from 0 to 4294967295, not -1"),
            (json!({ "weight": "7" }), "`weight`: it must be a whole number from 0 to 4294967295, not \"7\""),
            (json!({ "fraction": null }), "`fraction`: it must be a number, not null"),
            (json!({ "name": 7 }), "`name`: it must be a text, not 7"),
            (json!({ "kind": "magic" }), "`kind`: `magic` is not one of `quantize`"),
            (json!({ "routes": [[1, 100]] }), "`routes.0`: it must be an object, not a list"),
            (json!({ "routes": {} }), "`routes`: it must be a list, not an object"),
            (json!({ "routes": [{ "version": 1 }] }), "the field `weight` of `routes.0` is missing"),
            (
                json!({ "routes": [{ "version": 1, "part": 1 }] }),
                "unknown field `part` of `routes.0`; there are `version`, `weight`",
            ),
            (json!({ "recipe": [] }), "`recipe`: it must be an object, not a list"),
        ] {
            assert_eq!(read::<Body>(&body).unwrap_err(), want, "{body}");
        }
    }

    #[tokio::test]
    async fn a_query_is_read_as_text_and_its_faults_are_named() {
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            limit: Option<u32>,
            name: Option<String>,
        }
        let ask = async |query: &str| {
            let request = axum::http::Request::get(format!("/x{query}")).body(()).unwrap();
            let read = Query::<Asked>::from_request_parts(&mut request.into_parts().0, &()).await;
            read.map(|Query(asked)| (asked.limit, asked.name)).map_err(|problem| problem.detail)
        };
        assert_eq!(ask("").await, Ok((None, None)));
        assert_eq!(ask("?limit=7&name=12").await, Ok((Some(7), Some("12".to_owned()))));
        assert_eq!(ask("?name=a%20b+c").await, Ok((None, Some("a b c".to_owned()))));
        for (query, want) in [
            ("?limit=abc", "`limit`: it must be a whole number from 0 to 4294967295, not \"abc\""),
            ("?limit=1.5", "`limit`: it must be a whole number from 0 to 4294967295, not \"1.5\""),
            ("?foo=1", "unknown parameter `foo`; there are `limit`, `name`"),
            ("?limit=1&limit=2", "the parameter `limit` is given twice"),
        ] {
            assert_eq!(ask(query).await, Err(want.to_owned()), "{query}");
        }
    }
}
