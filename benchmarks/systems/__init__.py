"""The systems that the service is held against, each as small as a careful person would write it."""
