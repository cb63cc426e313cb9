"""Every operation and implementation over random shapes, values, strides and dtypes, against loops written apart."""
