-- Which team owns a service.
CREATE EXTERNAL TABLE owners (service VARCHAR NOT NULL, team VARCHAR)
STORED AS CSV LOCATION 'owners.csv' OPTIONS ('format.has_header' 'true')
