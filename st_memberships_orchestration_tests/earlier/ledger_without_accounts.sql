BEGIN TRANSACTION;
CREATE TABLE st_write_entries (
	"key" VARCHAR(64) NOT NULL, 
	environment VARCHAR(20) NOT NULL, 
	tenant VARCHAR(100) NOT NULL, 
	kind VARCHAR(50) NOT NULL, 
	"plan" VARCHAR(64) NOT NULL, 
	line INTEGER NOT NULL, 
	target BIGINT, 
	content_hash VARCHAR(64) NOT NULL, 
	status VARCHAR(20) NOT NULL, 
	detail TEXT NOT NULL, 
	found_by VARCHAR(20), 
	verified BOOLEAN NOT NULL, 
	attempts INTEGER NOT NULL, 
	claim VARCHAR(32) NOT NULL, 
	claimed_at VARCHAR(32) NOT NULL, 
	updated_at VARCHAR(32) NOT NULL, 
	change TEXT NOT NULL, 
	wanted TEXT NOT NULL, 
	"before" TEXT NOT NULL, 
	"after" TEXT, 
	result TEXT, 
	money VARCHAR(40), 
	answer TEXT, 
	trace_id VARCHAR(200), 
	who VARCHAR(200) NOT NULL, 
	run_id VARCHAR(100) NOT NULL, 
	trail TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "st_write_entries" VALUES('5b628927719a91006dbfb41eda57a7a344261a63800086d89275c8904c4518c0','sandbox','acme','sell_memberships','086affd01d7f05fd05915cbf33b7b742a3345549a64cf02eaaa3a8c0d0b4c959',2,NULL,'ed9b232ad503cca7d5c0b1bc9393282c929357abe9ed48d58fce5987b8310339','succeeded','','receipt',1,1,'9b95ab9d888b48ba834a9a86613b3304','2026-03-01T12:00:00+00:00','2026-03-01T12:00:00+00:00','{"customer_id": 11, "business_unit_id": 2, "sale_task_id": 3, "duration_billing_id": 4, "recurring_service_action": "All"}','{"customer_id": 11, "business_unit_id": 2, "membership_type_id": 5, "duration": 12, "billing_frequency": "Monthly"}','{"baseline": [70]}',NULL,'{"invoice_id": 900, "customer_membership_id": 71}','25',NULL,NULL,'Ann','run-1','[{"at": "2026-03-01T12:00:00+00:00", "status": "sending", "who": "Ann", "run": "run-1"}, {"at": "2026-03-01T12:00:00+00:00", "status": "succeeded", "found_by": "receipt"}]');
INSERT INTO "st_write_entries" VALUES('1bd8f244319dfed02f74b41169b74e741d09c24ce571cec52d529a9106a486ef','sandbox','acme','sell_memberships','086affd01d7f05fd05915cbf33b7b742a3345549a64cf02eaaa3a8c0d0b4c959',3,NULL,'26d4f62d9acbc5e46b160761f1d6ba0fb35c8ca2fa99faaa78b5b779a5182236','unknown','ReadTimeout.',NULL,0,1,'1c720e8d67724689b27ce4fa8678605d','2026-03-01T12:00:00+00:00','2026-03-01T12:00:00+00:00','{"customer_id": 12, "business_unit_id": 2, "sale_task_id": 3, "duration_billing_id": 4, "recurring_service_action": "All"}','{"customer_id": 12, "business_unit_id": 2, "membership_type_id": 5, "duration": 12, "billing_frequency": "Monthly"}','{"baseline": []}',NULL,NULL,'25',NULL,NULL,'Ann','run-1','[{"at": "2026-03-01T12:00:00+00:00", "status": "sending", "who": "Ann", "run": "run-1"}, {"at": "2026-03-01T12:00:00+00:00", "status": "unknown", "detail": "ReadTimeout."}]');
INSERT INTO "st_write_entries" VALUES('523a5d3f92060599c5d3ce4b272d1b00cc822509ec418854a1e6b7900d60b0df','sandbox','acme','sell_memberships','5d88f7fcebddda052ed75b87e570ea73a027097bd94560ed5ac881bddb2173a4',2,NULL,'bed31323eb0c4785edfa0c3d07ff62aabf4a3a6512a140074abfd62d5b190b38','succeeded','','receipt',1,1,'2435eebabf4a44519799d62fd9f6a594','2026-03-01T12:00:00+00:00','2026-03-01T12:00:00+00:00','{"customer_id": 13, "business_unit_id": 2, "sale_task_id": 3, "duration_billing_id": 4, "recurring_service_action": "All", "location_id": null}','{"customer_id": 13}','{"baseline": [80]}',NULL,'{"invoice_id": 901, "customer_membership_id": 81}','25',NULL,NULL,'Ann','run-1','[{"at": "2026-03-01T12:00:00+00:00", "status": "sending", "who": "Ann", "run": "run-1"}, {"at": "2026-03-01T12:00:00+00:00", "status": "succeeded", "found_by": "receipt"}]');
INSERT INTO "st_write_entries" VALUES('aa703ac6d9e5de9f9160fc4958f4c18c211d840f2eee16d92b9944174e1ddcef','sandbox','acme','mark_events_complete','74e3febbbdaaf4b283f0e8b3874aa2f42f995ea0d6ad80e686f2e77c659deb78',2,502,'3e5ccfb376093bbdb25fb111531a83e9d01503bc7c3fdf9cb74f194048e4b79d','succeeded','',NULL,1,1,'981009ec4ee64984898ae0367820c55d','2026-03-01T12:00:00+00:00','2026-03-01T12:00:00+00:00','{"job_id": 42}','{"job_id": 42}','{"job_id": null, "modified_on": "2026-02-01T00:00:00+00:00"}','{"job_id": 42}','{"id": 502}',NULL,NULL,NULL,'Ann','run-1','[{"at": "2026-03-01T12:00:00+00:00", "status": "sending", "who": "Ann", "run": "run-1"}, {"at": "2026-03-01T12:00:00+00:00", "status": "succeeded"}]');
INSERT INTO "st_write_entries" VALUES('87063678edc18cfd73c104b53fca38540a2d44f0153f8e2768a33e0b62951131','sandbox','acme','mark_events_complete','74e3febbbdaaf4b283f0e8b3874aa2f42f995ea0d6ad80e686f2e77c659deb78',3,503,'1045fa3a140e1b2c8f43b8cc247fde389c7288066ca7c289722fb4beb150540f','sending','',NULL,0,1,'8640f561f5054b37ab7a7a46ab8b50c3','2026-03-01T12:00:00+00:00','2026-03-01T12:00:00+00:00','{"job_id": 43}','{"job_id": 43}','{"job_id": null, "modified_on": "2026-02-01T00:00:00+00:00"}',NULL,NULL,NULL,NULL,NULL,'Ann','run-1','[{"at": "2026-03-01T12:00:00+00:00", "status": "sending", "who": "Ann", "run": "run-1"}]');
INSERT INTO "st_write_entries" VALUES('a313fb396e64fa5a1bd6da19cd20229dfb4214cb825f7408db86c9fdae7c55c5','sandbox','acme','mark_events_complete','74e3febbbdaaf4b283f0e8b3874aa2f42f995ea0d6ad80e686f2e77c659deb78',4,504,'0c78d93acd0ba838bf289d2e12887a74d8a9ccb7b1395ed5993f744f5fe758fc','refused','answered 400',NULL,0,1,'e3278de386634bf0ab3d2aab9a0bf25a','2026-03-01T12:00:00+00:00','2026-03-01T12:00:00+00:00','{"job_id": 44}','{"job_id": 44}','{"job_id": null, "modified_on": "2026-02-01T00:00:00+00:00"}',NULL,NULL,NULL,NULL,NULL,'Ann','run-1','[{"at": "2026-03-01T12:00:00+00:00", "status": "sending", "who": "Ann", "run": "run-1"}, {"at": "2026-03-01T12:00:00+00:00", "status": "refused", "detail": "answered 400"}]');
CREATE TABLE st_write_plans (
	hash VARCHAR(64) NOT NULL, 
	tenant VARCHAR(100) NOT NULL, 
	kind VARCHAR(50) NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	"plan" TEXT NOT NULL, 
	PRIMARY KEY (hash)
);
INSERT INTO "st_write_plans" VALUES('086affd01d7f05fd05915cbf33b7b742a3345549a64cf02eaaa3a8c0d0b4c959','acme','sell_memberships','2026-03-01T12:00:00+00:00','{
 "format": 2,
 "hash": "086affd01d7f05fd05915cbf33b7b742a3345549a64cf02eaaa3a8c0d0b4c959",
 "tenant": "acme",
 "environment": "sandbox",
 "kind": "sell_memberships",
 "source": "old.csv",
 "created_at": "2026-03-01T12:00:00+00:00",
 "changes": [
  {
   "line": 2,
   "target": null,
   "change": {
    "customer_id": 11,
    "business_unit_id": 2,
    "sale_task_id": 3,
    "duration_billing_id": 4,
    "recurring_service_action": "All"
   },
   "wanted": {
    "customer_id": 11,
    "business_unit_id": 2,
    "membership_type_id": 5,
    "duration": 12,
    "billing_frequency": "Monthly"
   },
   "before": {},
   "money": "25",
   "warnings": []
  },
  {
   "line": 3,
   "target": null,
   "change": {
    "customer_id": 12,
    "business_unit_id": 2,
    "sale_task_id": 3,
    "duration_billing_id": 4,
    "recurring_service_action": "All"
   },
   "wanted": {
    "customer_id": 12,
    "business_unit_id": 2,
    "membership_type_id": 5,
    "duration": 12,
    "billing_frequency": "Monthly"
   },
   "before": {},
   "money": "25",
   "warnings": []
  }
 ],
 "no_ops": [],
 "refused": [],
 "occasion": "",
 "confirmed": []
}
');
INSERT INTO "st_write_plans" VALUES('5d88f7fcebddda052ed75b87e570ea73a027097bd94560ed5ac881bddb2173a4','acme','sell_memberships','2026-03-01T12:00:00+00:00','{
 "format": 2,
 "hash": "5d88f7fcebddda052ed75b87e570ea73a027097bd94560ed5ac881bddb2173a4",
 "tenant": "acme",
 "environment": "sandbox",
 "kind": "sell_memberships",
 "source": "old.csv",
 "created_at": "2026-03-01T12:00:00+00:00",
 "changes": [
  {
   "line": 2,
   "target": null,
   "change": {
    "customer_id": 13,
    "business_unit_id": 2,
    "sale_task_id": 3,
    "duration_billing_id": 4,
    "recurring_service_action": "All",
    "location_id": null
   },
   "wanted": {
    "customer_id": 13
   },
   "before": {},
   "money": "25",
   "warnings": []
  }
 ],
 "no_ops": [],
 "refused": [],
 "occasion": "second car",
 "confirmed": []
}
');
INSERT INTO "st_write_plans" VALUES('74e3febbbdaaf4b283f0e8b3874aa2f42f995ea0d6ad80e686f2e77c659deb78','acme','mark_events_complete','2026-03-01T12:00:00+00:00','{
 "format": 2,
 "hash": "74e3febbbdaaf4b283f0e8b3874aa2f42f995ea0d6ad80e686f2e77c659deb78",
 "tenant": "acme",
 "environment": "sandbox",
 "kind": "mark_events_complete",
 "source": "old.csv",
 "created_at": "2026-03-01T12:00:00+00:00",
 "changes": [
  {
   "line": 2,
   "target": 502,
   "change": {
    "job_id": 42
   },
   "wanted": {
    "job_id": 42
   },
   "before": {
    "job_id": null,
    "modified_on": "2026-02-01T00:00:00+00:00"
   },
   "money": null,
   "warnings": []
  },
  {
   "line": 3,
   "target": 503,
   "change": {
    "job_id": 43
   },
   "wanted": {
    "job_id": 43
   },
   "before": {
    "job_id": null,
    "modified_on": "2026-02-01T00:00:00+00:00"
   },
   "money": null,
   "warnings": []
  },
  {
   "line": 4,
   "target": 504,
   "change": {
    "job_id": 44
   },
   "wanted": {
    "job_id": 44
   },
   "before": {
    "job_id": null,
    "modified_on": "2026-02-01T00:00:00+00:00"
   },
   "money": null,
   "warnings": []
  }
 ],
 "no_ops": [],
 "refused": [],
 "occasion": "",
 "confirmed": []
}
');
CREATE TABLE st_write_spent (
	environment VARCHAR(20) NOT NULL, 
	tenant VARCHAR(100) NOT NULL, 
	kind VARCHAR(50) NOT NULL, 
	day VARCHAR(10) NOT NULL, 
	count INTEGER NOT NULL, 
	cents BIGINT NOT NULL, 
	PRIMARY KEY (environment, tenant, kind, day)
);
INSERT INTO "st_write_spent" VALUES('sandbox','acme','*','2026-03-01',5,7500);
INSERT INTO "st_write_spent" VALUES('sandbox','acme','sell_memberships','2026-03-01',3,7500);
INSERT INTO "st_write_spent" VALUES('sandbox','acme','mark_events_complete','2026-03-01',2,0);
CREATE INDEX ix_st_write_entries_plan ON st_write_entries ("plan");
CREATE INDEX ix_st_write_entries_updated_at ON st_write_entries (updated_at);
COMMIT;
