//! Amounts on the command line: sizes, durations, cores, labels.

use std::time::Duration;

/// Reads `4GiB`, `512MiB`, `1.5G` (all binary), or plain bytes.
///
/// # Errors
/// When it is no size.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size such as 512MiB, 4GiB or a number of bytes");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" | "bytes" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    scaled(number, 1u64 << shift).ok_or_else(wrong)
}

/// Reads cores such as `2`, `0.5` or `1500m` into thousandths.
///
/// # Errors
/// When it is no number of cores.
pub(crate) fn cores(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a number of cores such as 2, 0.5 or 1500m");
    match text.strip_suffix('m') {
        Some(thousandths) => thousandths.parse().map_err(|_| wrong()),
        None => scaled(text, 1000).ok_or_else(wrong),
    }
}

/// Reads `90s`, `10m`, `2h`, `1d` or plain seconds.
///
/// # Errors
/// When it is no duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 90s, 10m, 2h or 1d");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    scaled(number, millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads `key=value`.
///
/// # Errors
/// When there is no `=` or nothing before it.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a label such as team=news")),
    }
}

/// `number` (with at most nine decimals) times `unit`, exactly, rounded down.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let base = 10u128.pow(fraction.len() as u32);
    let parts = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    let total = u128::from(whole.parse::<u64>().ok()?) * base + parts;
    u64::try_from(total * u128::from(unit) / base).ok()
}

/// Milliseconds as a person reads them: `950 ms`, `12.3 s`, `4 m 05 s`, `2 h 03 m`.
pub(crate) fn display_millis(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis} ms"),
        1..=59 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..=3599 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly() {
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("42"), Ok(42));
        assert_eq!(size("2 g"), Ok(2 << 30));
        assert_eq!(cores("0.5"), Ok(500));
        assert_eq!(cores("1500m"), Ok(1500));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", ".", "-1", "1.2.3", "4 parsecs", "99999999999999999999", "1e3", "é"] {
            assert!(size(text).is_err() && cores(text).is_err() && duration(text).is_err(), "{text}");
        }
        assert!(size("18446744073709551615GiB").is_err());
        assert!(label("=x").is_err() && label("x").is_err());
    }

    #[test]
    fn times_read_well() {
        for (millis, text) in
            [(7, "7 ms"), (12_345, "12.3 s"), (245_000, "4 m 05 s"), (7_380_000, "2 h 03 m")]
        {
            assert_eq!(display_millis(millis), text);
        }
    }
}
