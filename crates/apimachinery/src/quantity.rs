//! Amounts of resources: upstream's `k8s.io/apimachinery/pkg/api/resource.Quantity`.
//!
//! A quantity is a decimal number (`value × 10^scale`) that remembers the family of suffixes it was written with. Nothing finer
//! than a billionth is kept: what is written finer rounds away from zero, so that whoever asks for something gets something.
//! Beyond 36 significant digits the lowest ones round the same way (upstream computes with unbounded integers).
//!
//! Must not know: what is measured.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Mul, Neg, Sub, SubAssign};

use serde_json::Value;

/// The family of suffixes that a quantity prints with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `500m`, `2`, `3k`, `4G`
    #[default]
    DecimalSi,
    /// `1Ki`, `512Mi`; falls back to decimal below 1024 and for fractions.
    BinarySi,
    /// `12e6`
    DecimalExponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// A resource amount. Equality and order are those of the number; the format does not count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    value: i128,
    scale: i32,
    format: Format,
}

/// Finest scale kept.
const NANO: i32 = -9;
/// Largest magnitude of `value`: two factors of ten and a doubling still fit in an `i128`.
const LIMIT: i128 = 10i128.pow(36);
const DECIMAL: [(i32, &str); 10] =
    [(-9, "n"), (-6, "u"), (-3, "m"), (0, ""), (3, "k"), (6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E")];
const BINARY: [(u32, &str); 6] = [(10, "Ki"), (20, "Mi"), (30, "Gi"), (40, "Ti"), (50, "Pi"), (60, "Ei")];

/// The parts of a quantity's text; `digits` are those before and after the point.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

enum Suffix {
    Ten(i32, Format),
    Two(u32),
}

fn leading(text: &str, accepted: impl Fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(|b| !accepted(b)).unwrap_or(text.len());
    text.split_at(end)
}

fn split(text: &str) -> Result<Parts<'_>, ParseError> {
    if text.is_empty() {
        return Err(ParseError::Format);
    }
    let digit = |b: u8| b.is_ascii_digit();
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, rest) = leading(rest, digit);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => leading(rest, digit),
        None => ("", rest),
    };
    let (_, rest) = leading(suffix, |b| b"eEinumkKMGTP".contains(&b));
    let (_, rest) = leading(rest.strip_prefix(['-', '+']).unwrap_or(rest), digit);
    if !rest.is_empty() {
        return Err(ParseError::Format);
    }
    Ok(Parts { negative, whole: whole.trim_start_matches('0'), fraction, suffix })
}

fn interpret(suffix: &str) -> Option<Suffix> {
    if let Some(&(exponent, _)) = DECIMAL.iter().find(|(_, s)| *s == suffix) {
        return Some(Suffix::Ten(exponent, Format::DecimalSi));
    }
    if let Some(&(exponent, _)) = BINARY.iter().find(|(_, s)| *s == suffix) {
        return Some(Suffix::Two(exponent));
    }
    let exponent: i64 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    // Upstream narrows to 32 bits; out of its range there is nothing sensible to mean.
    i32::try_from(exponent).ok().map(|exponent| Suffix::Ten(exponent, Format::DecimalExponent))
}

/// Divides by `10^places`, rounding away from zero.
fn shrink(value: i128, places: u32) -> i128 {
    let Some(divisor) = 10i128.checked_pow(places) else { return value.signum() };
    let quotient = value / divisor;
    if value % divisor == 0 { quotient } else { quotient + value.signum() }
}

fn digits_of(value: i128) -> i64 {
    value.unsigned_abs().checked_ilog10().map_or(0, |log| i64::from(log) + 1)
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { value: 0, scale: 0, format: Format::DecimalSi };

    pub fn new(value: i64, format: Format) -> Self {
        Quantity { value: i128::from(value), scale: 0, format }
    }

    /// `milli` thousandths.
    pub fn from_milli(milli: i64, format: Format) -> Self {
        Quantity { value: i128::from(milli), scale: -3, format }
    }

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Ok(parse_parts(text)?.0)
    }

    /// A string or a JSON number. Blanks around it are allowed, as upstream's decoder does; null is zero.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::Null => Ok(Self::ZERO),
            Value::String(text) => Self::parse(text.trim()),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(ParseError::Format),
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.value == 0
    }

    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        match self.value.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    /// The number as an integer, rounded away from zero; saturates (upstream overflows).
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }

    /// Thousandths, rounded away from zero; saturates.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }

    /// `self / 10^scale`, rounded away from zero; saturates.
    pub fn scaled_value(&self, scale: i32) -> i64 {
        let shift = i64::from(self.scale) - i64::from(scale);
        let places = u32::try_from(shift.unsigned_abs()).unwrap_or(u32::MAX);
        let wide = if shift <= 0 {
            shrink(self.value, places)
        } else {
            let grown = 10i128.checked_pow(places).and_then(|factor| self.value.checked_mul(factor));
            grown.unwrap_or(self.value.signum() * i128::MAX)
        };
        let bounded = wide.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        i64::try_from(bounded).expect("clamped to the range of i64")
    }

    /// The nearest floating point number, for ratios.
    pub fn as_f64(&self) -> f64 {
        if self.value == 0 { 0.0 } else { self.value as f64 * 10f64.powi(self.scale) }
    }

    /// Rounds away from zero to a multiple of `10^scale`; tells whether nothing was lost.
    pub fn round_up(&mut self, scale: i32) -> bool {
        if self.scale >= scale || self.value == 0 {
            return true;
        }
        let before = *self;
        *self = self.at_least(scale);
        *self == before
    }

    fn at_least(self, scale: i32) -> Self {
        if self.scale >= scale {
            return self;
        }
        let places = (i64::from(scale) - i64::from(self.scale)).unsigned_abs();
        let value = shrink(self.value, u32::try_from(places).unwrap_or(u32::MAX));
        Quantity { value, scale, ..self }
    }

    /// Brings `value` under the limit; a number of 36 digits that must round is precise enough.
    fn fitted(self) -> Self {
        let extra = digits_of(self.value) - 36;
        if extra <= 0 {
            return self;
        }
        let places = u32::try_from(extra).expect("an i128 has at most 39 digits");
        let scale = self.scale.saturating_add_unsigned(places);
        Quantity { value: shrink(self.value, places), scale, ..self }
    }

    /// The magnitude's position: digits before the decimal point.
    fn magnitude(&self) -> i64 {
        digits_of(self.value) + i64::from(self.scale)
    }

    /// An integer below the limit, if it is one.
    fn as_integer(&self) -> Option<i128> {
        if self.value == 0 {
            return Some(0);
        }
        let places = self.scale.unsigned_abs();
        if self.scale >= 0 {
            return self.value.checked_mul(10i128.checked_pow(places)?);
        }
        let divisor = 10i128.checked_pow(places)?;
        (self.value % divisor == 0).then(|| self.value / divisor)
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Quantity { value: -self.value, ..self }
    }
}

/// The sum. A zero on the left takes the other's format, as upstream.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        if self.is_zero() || other.is_zero() {
            let sum = if self.is_zero() { other } else { self };
            return Quantity { format, ..sum };
        }
        let (high, low) = if self.scale >= other.scale { (self, other) } else { (other, self) };
        let (high, low) = level(high, low);
        Quantity { value: high.value + low.value, scale: low.scale, format }.fitted()
    }
}

/// The difference. A zero on the left takes the other's format, as upstream.
impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul<i64> for Quantity {
    type Output = Self;

    fn mul(self, factor: i64) -> Self {
        if let Some(value) = self.value.checked_mul(i128::from(factor)) {
            return Quantity { value, ..self }.fitted();
        }
        // A factor of up to 19 digits: give up 20 of the 36.
        let scale = self.scale.saturating_add(20);
        let value = shrink(self.value, 20) * i128::from(factor);
        Quantity { value, scale, ..self }.fitted()
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// Both at one scale: the lower one, unless the higher number would outgrow the limit.
fn level(mut high: Quantity, mut low: Quantity) -> (Quantity, Quantity) {
    let room = 36 - digits_of(high.value);
    let gap = i64::from(high.scale) - i64::from(low.scale);
    let grow = u32::try_from(gap.min(room).max(0)).expect("at most 36");
    high.value *= 10i128.pow(grow);
    high.scale = high.scale.saturating_sub_unsigned(grow);
    low = low.at_least(high.scale);
    (high, low)
}

/// The quantity, and whether its text is one that upstream prints back as it came.
fn parse_parts(text: &str) -> Result<(Quantity, bool), ParseError> {
    let parts = split(text)?;
    let suffix = interpret(parts.suffix).ok_or(ParseError::Suffix)?;
    let significant = parts.whole.len() + parts.fraction.len();
    let (mantissa, dropped) = mantissa(&parts);
    let mantissa = if parts.negative { -mantissa } else { mantissa };
    let scale = dropped - i64::try_from(parts.fraction.len()).unwrap_or(i64::MAX);
    match suffix {
        Suffix::Ten(exponent, format) => {
            let scale = scale.saturating_add(i64::from(exponent));
            let quantity = decimal(mantissa, scale, format);
            let kept = scale >= i64::from(NANO)
                && scale % 3 == 0
                && significant <= 18
                && !zero_led(&parts)
                && !ends_in_thousand(&parts);
            Ok((quantity, kept))
        }
        Suffix::Two(exponent) => {
            let quantity = binary(mantissa, scale, exponent);
            let short = significant + (exponent as usize * 3) / 10 < 15;
            let kept = parts.fraction.is_empty() && short && mantissa.unsigned_abs() & 7 != 0;
            Ok((quantity, kept))
        }
    }
}

/// The digits as a number, and how many of the lowest were rounded off.
fn mantissa(parts: &Parts<'_>) -> (i128, i64) {
    let mut value: i128 = 0;
    let mut dropped = 0i64;
    let mut lost = false;
    for digit in parts.whole.bytes().chain(parts.fraction.bytes()).map(|b| i128::from(b - b'0')) {
        if dropped == 0 && value < LIMIT / 10 {
            value = value * 10 + digit;
        } else {
            dropped += 1;
            lost |= digit != 0;
        }
    }
    (if lost { value + 1 } else { value }, dropped)
}

fn zero_led(parts: &Parts<'_>) -> bool {
    parts.whole.is_empty()
}

fn ends_in_thousand(parts: &Parts<'_>) -> bool {
    parts.whole.bytes().chain(parts.fraction.bytes()).rev().take(3).filter(|&b| b == b'0').count() == 3
}

/// `mantissa × 10^scale`, rounded away from zero to billionths.
fn decimal(mantissa: i128, scale: i64, format: Format) -> Quantity {
    if mantissa == 0 {
        return Quantity { format, ..Quantity::ZERO };
    }
    if scale >= i64::from(NANO) {
        let scale = i32::try_from(scale).unwrap_or(i32::MAX);
        return Quantity { value: mantissa, scale, format }.fitted();
    }
    let places = u32::try_from((i64::from(NANO) - scale).unsigned_abs()).unwrap_or(u32::MAX);
    Quantity { value: shrink(mantissa, places), scale: NANO, format }.fitted()
}

/// `mantissa × 10^scale × 2^exponent`, capped at the largest 64-bit integer, as upstream.
fn binary(mantissa: i128, scale: i64, exponent: u32) -> Quantity {
    let cap = Quantity { value: mantissa.signum() * i128::from(i64::MAX), scale: 0, format: Format::BinarySi };
    if mantissa != 0 && digits_of(mantissa) + scale > 20 {
        return cap;
    }
    let extra = (digits_of(mantissa) + digits_of(1 << exponent) - 37).max(0);
    let value = shrink(mantissa, u32::try_from(extra).expect("at most 19")) << exponent;
    let mut product = decimal(value, scale.saturating_add(extra), Format::BinarySi);
    if (mantissa > 0 && product > cap) || (mantissa < 0 && product < cap) {
        return cap;
    }
    if product.value != 0 && product.magnitude() <= 0 {
        product.format = Format::DecimalSi;
    }
    product
}

/// The text that upstream's decoder and encoder make of `text`: canonical, except that some spellings come back as they were
/// (`1.500`, `1E3`, `100Mi`), since upstream keeps the string where a quick test finds it canonical enough.
pub fn canonical(text: &str) -> Result<Cow<'_, str>, ParseError> {
    if text == "0" {
        return Ok(Cow::Borrowed(text));
    }
    let (quantity, kept) = parse_parts(text)?;
    Ok(if kept { Cow::Borrowed(text) } else { Cow::Owned(quantity.to_string()) })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi
            && let Some(mut integer) = self.as_integer().filter(|i| i.unsigned_abs() >= 1024)
        {
            let mut step = 0;
            while integer % 1024 == 0 && step < BINARY.len() {
                integer /= 1024;
                step += 1;
            }
            let suffix = step.checked_sub(1).map_or("", |i| BINARY[i].1);
            return write!(f, "{integer}{suffix}");
        }
        let (mut value, mut exponent) = (self.value, i64::from(self.scale));
        while value % 10 == 0 {
            value /= 10;
            exponent += 1;
        }
        let places = exponent.rem_euclid(3);
        value *= 10i128.pow(u32::try_from(places).expect("0, 1 or 2"));
        exponent -= places;
        if self.format != Format::DecimalExponent
            && let Some((_, suffix)) = DECIMAL.iter().find(|(e, _)| i64::from(*e) == exponent)
        {
            return write!(f, "{value}{suffix}");
        }
        // Out of the suffixes' range upstream drops the exponent; the number matters more than the family.
        if exponent == 0 { write!(f, "{value}") } else { write!(f, "{value}e{exponent}") }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let signs = self.signum().cmp(&other.signum());
        if signs != Ordering::Equal || self.value == 0 {
            return signs;
        }
        let magnitudes = self.magnitude().cmp(&other.magnitude());
        if magnitudes != Ordering::Equal {
            return if self.value > 0 { magnitudes } else { magnitudes.reverse() };
        }
        // Of one magnitude: bring both to as many digits as the longer has.
        let gap = digits_of(self.value) - digits_of(other.value);
        let grow = |value: i128, places: i64| value * 10i128.pow(u32::try_from(places.max(0)).unwrap_or(0));
        grow(self.value, -gap).cmp(&grow(other.value, gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_canonical_form() {
        for (text, expected) in [
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.001", "1m"),
            ("0.0000000001", "1n"),
            ("-0.5", "-500m"),
            ("1000", "1k"),
            ("1000k", "1M"),
            ("2048Ki", "2Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("512Ki", "512Ki"),
            ("1.1Ki", "1126400m"),
            ("0.0001Ki", "102400u"),
            ("1e3", "1e3"),
            ("1000e3", "1e6"),
            ("12E6", "12E6"),
            ("8Ei", "9223372036854775807"),
            ("100000000000000000000Ki", "9223372036854775807"),
            ("-8Ei", "-9223372036854775807"),
            ("1E", "1E"),
            ("1.500", "1.500"),
            ("1.50", "1500m"),
            ("0", "0"),
            ("0Mi", "0"),
            ("-", "0"),
            ("00.5", "500m"),
            (".5", "500m"),
            ("5.", "5."),
            ("100M", "100M"),
            ("1e100", "10e99"),
            ("307200Ki", "300Mi"),
            ("1025024Mi", "1001Gi"),
            ("5000m", "5"),
            ("0.001T", "1G"),
            ("1.08", "1080m"),
            ("1080000000n", "1080m"),
            (".001e12", "1e9"),
            ("0.001e0", "1e-3"),
            ("1000e-12", "1e-9"),
            (".001Ki", "1024m"),
            ("-.000000001Ki", "-1024n"),
            (".000000000001Ki", "2n"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, error) in [
            ("", ParseError::Format),
            ("1.1.M", ParseError::Format),
            (" 1", ParseError::Format),
            ("1 ", ParseError::Format),
            ("aoeu", ParseError::Format),
            ("1+1.0M", ParseError::Format),
            ("1é", ParseError::Format),
            ("0.1mi", ParseError::Suffix),
            ("1i", ParseError::Suffix),
            ("1K", ParseError::Suffix),
            ("-3.01e-", ParseError::Suffix),
            ("1e99999999999999999999", ParseError::Suffix),
        ] {
            assert_eq!(canonical(text), Err(error), "{text}");
        }
    }

    #[test]
    fn computes() {
        let q = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("0.5").milli_value(), 500);
        assert_eq!(q("1u").milli_value(), 1);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!(q("1e100").value(), i64::MAX);
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((q("1") - q("100m")).to_string(), "900m");
        assert_eq!((Quantity::ZERO + q("1Ki")).to_string(), "1Ki");
        assert_eq!((q("3Gi") * 4).to_string(), "12Gi");
        assert_eq!(q("1"), q("1000m"));
        assert!(q("1e30") > q("1e29") && q("-1e30") < q("-1e29") && q("1Ki") > q("1k"));
        let mut rounded = q("1.5");
        assert!(!rounded.round_up(0));
        assert_eq!(rounded.to_string(), "2");
        assert_eq!(Quantity::from_value(&serde_json::json!(1.5)).unwrap().to_string(), "1500m");
    }

    fn any_quantity() -> impl Strategy<Value = String> {
        let suffix =
            prop::sample::select(vec!["", "n", "u", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "e-2"]);
        (any::<bool>(), 0u64..1_000_000_000, 0u32..100_000, suffix).prop_map(|(negative, whole, part, suffix)| {
            format!("{}{whole}.{part}{suffix}", if negative { "-" } else { "" })
        })
    }

    proptest! {
        #[test]
        fn round_trips(text in any_quantity()) {
            let quantity = Quantity::parse(&text).unwrap();
            let printed = quantity.to_string();
            let again = Quantity::parse(&printed).unwrap();
            prop_assert_eq!(again, quantity);
            prop_assert_eq!(again.to_string(), printed);
            prop_assert_eq!(Quantity::parse(&canonical(&text).unwrap()).unwrap(), quantity);
        }

        #[test]
        fn sums_commute_and_cancel(a in any_quantity(), b in any_quantity()) {
            let (a, b) = (Quantity::parse(&a).unwrap(), Quantity::parse(&b).unwrap());
            prop_assert_eq!(a + b, b + a);
            prop_assert_eq!(a + b - b, a);
            prop_assert_eq!(a.cmp(&b), (a - b).signum().cmp(&0));
        }

        #[test]
        fn never_panics(text in "[-+]?[0-9.]{0,50}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,12}", other in "[0-9]{1,45}(e-?[0-9]{1,10})?") {
            if let Ok(a) = Quantity::parse(&text) {
                let _ = (a.to_string(), a.value(), a.milli_value(), a.as_f64(), a * i64::MIN);
                if let Ok(b) = Quantity::parse(&other) {
                    let _ = (a + b, (a - b).to_string(), a.cmp(&b));
                }
            }
            let _ = canonical(&text);
        }
    }
}
