-- PostgreSQL makes the database of Prefect, POSTGRES_DB, by itself. Prefect searches texts by trigrams.
CREATE DATABASE mlflow;
