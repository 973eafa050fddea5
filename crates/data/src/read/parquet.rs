//! Parquet: rows by their number. Lists become arrays, structs and maps become objects.
//!
//! A key that is null in a nested struct is left out: writers give every struct of a column the same
//! keys, so that null there means "has no such key". NaN and infinities, which JSON lacks, are null.

use std::{
    cell::Cell,
    fs::File,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Once,
};

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow_array::{Array, cast::AsArray, types::*};
use arrow_schema::{DataType, TimeUnit};
use luthier_core::{Error, Result};
use serde_json::{Map, Number, Value};

use super::intake::Intake;

const BATCH_ROWS: usize = 1024;

thread_local! {
    /// Whether this thread is inside the decoder, whose panics become errors and are not printed.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Reads a file that may be damaged or hostile: the parquet crate asserts some of what a file says
/// about itself, and those panics are the file's fault.
pub(super) fn read(path: &Path, intake: &mut Intake) -> Result<()> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !DECODING.get() {
                before(info);
            }
        }));
    });
    DECODING.set(true);
    // After a panic the intake is only dropped, so it does not matter in which state it is.
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| decode(path, intake)));
    DECODING.set(false);
    outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said =
            said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        let what = format!("not readable as parquet: {said}");
        Err(Error::input(path.display().to_string(), what)
            .hint("the file is damaged; fetch it again"))
    })
}

fn decode(path: &Path, intake: &mut Intake) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
        return Err(Error::input(path.display().to_string(), "the file is empty"));
    }
    let bad = |row: usize, error: &dyn std::fmt::Display| {
        let at =
            if row == 0 { path.display().to_string() } else { format!("{}:{row}", path.display()) };
        Error::input(at, format!("not readable as parquet: {error}"))
    };
    let batches = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
        .map_err(|e| bad(0, &e))?;
    let mut line = 0;
    for batch in batches {
        let batch = batch.map_err(|e| bad(line + 1, &e))?;
        let schema = batch.schema();
        for i in 0..batch.num_rows() {
            line += 1;
            let mut row = Map::with_capacity(batch.num_columns());
            for (field, column) in schema.fields().iter().zip(batch.columns()) {
                let value = cell(column.as_ref(), i).map_err(|what| {
                    let at = format!("{}:{line}", path.display());
                    Error::input(at, format!("column {}: {what}", field.name()))
                })?;
                row.insert(field.name().clone(), value);
            }
            intake.row(line, row)?;
        }
    }
    Ok(())
}

/// Entry `i` of an array as JSON, or what stands in the way.
fn cell(array: &dyn Array, i: usize) -> std::result::Result<Value, String> {
    macro_rules! whole {
        ($t:ty) => {
            Value::from(array.as_primitive::<$t>().value(i))
        };
    }
    macro_rules! moment {
        ($t:ty, $read:ident) => {
            match array.as_primitive::<$t>().$read(i) {
                Some(moment) => Value::String(format!("{moment:?}")),
                None => return Err("a moment outside the calendar".to_owned()),
            }
        };
    }
    if array.is_null(i) {
        return Ok(Value::Null);
    }
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Bool(array.as_boolean().value(i)),
        DataType::Int8 => whole!(Int8Type),
        DataType::Int16 => whole!(Int16Type),
        DataType::Int32 => whole!(Int32Type),
        DataType::Int64 => whole!(Int64Type),
        DataType::UInt8 => whole!(UInt8Type),
        DataType::UInt16 => whole!(UInt16Type),
        DataType::UInt32 => whole!(UInt32Type),
        DataType::UInt64 => whole!(UInt64Type),
        DataType::Float16 => short_float(array.as_primitive::<Float16Type>().value(i).to_f32()),
        DataType::Float32 => short_float(array.as_primitive::<Float32Type>().value(i)),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(i)),
        DataType::Utf8 => array.as_string::<i32>().value(i).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(i).into(),
        DataType::Utf8View => array.as_string_view().value(i).into(),
        DataType::Binary => bytes(array.as_binary::<i32>().value(i))?,
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(i))?,
        DataType::BinaryView => bytes(array.as_binary_view().value(i))?,
        DataType::List(_) => list(array.as_list::<i32>().value(i).as_ref())?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(i).as_ref())?,
        DataType::FixedSizeList(_, _) => list(array.as_fixed_size_list().value(i).as_ref())?,
        DataType::Struct(fields) => {
            let mut object = Map::with_capacity(fields.len());
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                let value = cell(column.as_ref(), i)?;
                if !value.is_null() {
                    object.insert(field.name().clone(), value);
                }
            }
            Value::Object(object)
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(i);
            let mut object = Map::with_capacity(entries.len());
            for j in 0..entries.len() {
                let key = match cell(entries.column(0).as_ref(), j)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                object.insert(key, cell(entries.column(1).as_ref(), j)?);
            }
            Value::Object(object)
        }
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key =
                cell(dictionary.keys(), i)?.as_u64().and_then(|key| usize::try_from(key).ok());
            match key {
                Some(key) if key < dictionary.values().len() => {
                    cell(dictionary.values().as_ref(), key)?
                }
                _ => return Err("a dictionary key that is out of range".to_owned()),
            }
        }
        DataType::Date32 => moment!(Date32Type, value_as_date),
        DataType::Date64 => moment!(Date64Type, value_as_date),
        DataType::Timestamp(TimeUnit::Second, _) => moment!(TimestampSecondType, value_as_datetime),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            moment!(TimestampMillisecondType, value_as_datetime)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            moment!(TimestampMicrosecondType, value_as_datetime)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            moment!(TimestampNanosecondType, value_as_datetime)
        }
        DataType::Decimal128(_, _) => {
            array.as_primitive::<Decimal128Type>().value_as_string(i).into()
        }
        other => return Err(format!("luthier does not read parquet's type {other}")),
    })
}

fn list(items: &dyn Array) -> std::result::Result<Value, String> {
    (0..items.len())
        .map(|j| cell(items, j))
        .collect::<std::result::Result<_, _>>()
        .map(Value::Array)
}

fn bytes(bytes: &[u8]) -> std::result::Result<Value, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(format!("{} bytes that are no text", bytes.len())),
    }
}

fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Through the shortest decimal, so that 0.1 stays 0.1.
fn short_float(value: f32) -> Value {
    value.to_string().parse().map_or(Value::Null, float)
}
