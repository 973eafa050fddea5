//! What a GGUF value is when asked for a kind of value.

use super::{Array, Value};

impl Value {
    /// What it is, for an error.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Bool(_) => "true or false",
            Value::String(_) => "a text",
            Value::Array(Array::String(_)) => "a list of texts",
            Value::Array(_) => "a list",
            Value::F32(_) | Value::F64(_) => "a fraction",
            Value::I8(n) if *n < 0 => "a negative number",
            Value::I16(n) if *n < 0 => "a negative number",
            Value::I32(n) if *n < 0 => "a negative number",
            Value::I64(n) if *n < 0 => "a negative number",
            _ => "a whole number",
        }
    }

    /// A whole number that is not negative.
    pub fn as_uint(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A number. A 32-bit float becomes the decimal number that its writer meant: 1e-5, not
    /// 9.999999747378752e-6.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(decimal(x)),
            Value::F64(x) => Some(x),
            Value::I8(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::I64(n) => Some(n as f64),
            _ => self.as_uint().map(|n| n as f64),
        }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// A text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// A list of texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }

    /// A list of whole numbers of any width.
    pub fn as_ints(&self) -> Option<Vec<i64>> {
        let Value::Array(array) = self else { return None };
        match array {
            Array::U8(v) => Some(v.iter().map(|n| (*n).into()).collect()),
            Array::I8(v) => Some(v.iter().map(|n| (*n).into()).collect()),
            Array::U16(v) => Some(v.iter().map(|n| (*n).into()).collect()),
            Array::I16(v) => Some(v.iter().map(|n| (*n).into()).collect()),
            Array::U32(v) => Some(v.iter().map(|n| (*n).into()).collect()),
            Array::I32(v) => Some(v.iter().map(|n| (*n).into()).collect()),
            Array::U64(v) => v.iter().map(|n| (*n).try_into().ok()).collect(),
            Array::I64(v) => Some(v.clone()),
            _ => None,
        }
    }

    /// A list of numbers.
    pub fn as_floats(&self) -> Option<Vec<f64>> {
        match self {
            Value::Array(Array::F32(v)) => Some(v.iter().map(|x| decimal(*x)).collect()),
            Value::Array(Array::F64(v)) => Some(v.clone()),
            _ => self.as_ints().map(|v| v.iter().map(|n| *n as f64).collect()),
        }
    }
}

fn decimal(x: f32) -> f64 {
    // The shortest decimal text that means this float; it always parses.
    x.to_string().parse().unwrap_or(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_convert_where_nothing_is_lost() {
        assert_eq!(Value::F32(1e-5).as_float(), Some(1e-5));
        assert_eq!(Value::F32(f32::INFINITY).as_float(), Some(f64::INFINITY));
        assert_eq!(Value::I32(-1).as_uint(), None);
        assert_eq!(Value::U8(7).as_float(), Some(7.0));
        assert_eq!(Value::Array(Array::I32(vec![1, -2])).as_ints(), Some(vec![1, -2]));
        assert_eq!(Value::Array(Array::U64(vec![u64::MAX])).as_ints(), None);
    }
}
